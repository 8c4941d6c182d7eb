"""Two layers with nothing in between but a norm are one matrix, of a rank that the channels between them bound.

A linear bottleneck, as MobileNetV2 ends its blocks with, is such a pair with the layer that reads it. Cut as one
matrix of rank r it costs r (inputs + outputs), and saves from the first rank on that is dropped. A layer of n to 6 n
channels cut on its own costs more than before until a seventh of its ranks is gone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .plain import plain_layer
from .shapes import LayerShape, Plain, shape_of

_LARGEST = 2**24
"""Numbers of a product's weight: 64 MB."""

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


class Product(NamedTuple):
    """What comes before a layer and is one matrix with it.

    Attributes:
        first: name of the layer before it.
        norm: name of the norm between the two, in the state of evaluation; None where there is none.
    """

    first: str
    norm: str | None = None


class Joined(nn.Identity):
    """In the place of a layer, or norm, that is a part of a product now.

    Args:
        params: parameters of all that the product was made of; 0 where another place tells them.
        between: channels between its two layers; likewise.
    """

    def __init__(self, params: int = 0, between: int = 0) -> None:
        super().__init__()
        self.params = params
        self.between = between


def product_shape(first: LayerShape, second: LayerShape) -> LayerShape | None:
    """The geometry of the product of two layers; None where it is none of ours, or not narrow in between.

    Both are dense layers, or convolutions of a single point, of which the first alone may skip some. Where there are
    so many channels between them that the product costs less than the two, it is not their ranks that should be cut;
    and one too large to be held is none.
    """
    single = all(
        max(shape.kernel) == 1 and shape.groups == 1 and not shape.transposed and not any(map(any, shape.padding))
        for shape in (first, second)
    )
    if not single or first.kind != second.kind or first.outputs != second.inputs or max(second.stride) > 1:
        return None
    between = first.outputs
    whole = first.inputs * second.outputs
    if between < 2 or between * (first.inputs + second.outputs) >= whole or whole > _LARGEST:
        return None
    return replace(first, outputs=second.outputs, bias=first.bias or second.bias, between=between)


@torch.no_grad()
def product_of(first: Plain, norm: BatchNorm | None, second: Plain) -> Plain:
    """Two layers, and the norm between them as it evaluates, as one; computed in float64."""
    inner, bias = first.weight.flatten(1).double(), first.bias
    shift = None if bias is None else bias.double()
    if norm is not None:
        scale, offset = _evaluated(norm)
        inner = scale[:, None] * inner
        shift = offset if shift is None else offset + scale * shift
    outer = second.weight.flatten(1).double()
    if shift is not None:
        shift = outer @ shift
    if second.bias is not None:
        shift = second.bias.double() if shift is None else shift + second.bias.double()
    shape = replace(shape_of(first), outputs=shape_of(second).outputs, bias=shift is not None)
    dtype = second.weight.dtype
    weight = (outer @ inner).to(dtype).reshape(shape.weight)
    layer = plain_layer(shape, weight, None if shift is None else shift.to(dtype)).train(second.training)
    return layer.requires_grad_(second.weight.requires_grad)


def _evaluated(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """What a norm multiplies by, and adds, in evaluation: (channels,) float64 each."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    offset = -norm.running_mean.double() * scale
    return scale, offset if norm.bias is None else offset + norm.bias.double()
