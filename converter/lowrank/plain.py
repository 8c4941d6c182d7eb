"""Plain layers with given weights, alone or two in a row; and what a network may ask of the layer they replace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .forms import Form, factor_matrices, factor_shapes, factor_weights, rebuild
from .shapes import KINDS, LayerShape, Plain, shape_of


class ConvFace:
    """What torch's convolutions expose besides their weight and bias."""

    if TYPE_CHECKING:
        shape: LayerShape

    @property
    def in_channels(self) -> int:
        return self.shape.inputs

    @property
    def out_channels(self) -> int:
        return self.shape.outputs

    @property
    def kernel_size(self) -> tuple[int, ...]:
        return self.shape.kernel

    @property
    def stride(self) -> tuple[int, ...]:
        return self.shape.stride

    @property
    def padding(self) -> tuple[int, ...] | str:
        return _padding(self.shape)

    @property
    def output_padding(self) -> tuple[int, ...]:
        return _output_padding(self.shape)

    @property
    def transposed(self) -> bool:
        return self.shape.transposed

    @property
    def dilation(self) -> tuple[int, ...]:
        return self.shape.dilation

    @property
    def groups(self) -> int:
        return self.shape.groups

    @property
    def padding_mode(self) -> str:
        return self.shape.padding_mode


class LinearFace:
    """What nn.Linear exposes besides its weight and bias."""

    if TYPE_CHECKING:
        shape: LayerShape

    @property
    def in_features(self) -> int:
        return self.shape.inputs

    @property
    def out_features(self) -> int:
        return self.shape.outputs


class FusedPair(nn.Sequential):
    """The two plain layers that a low-rank layer fuses into; to the rest of the network still one layer."""

    def __init__(self, shape: LayerShape, form: Form, first: nn.Module, second: nn.Module) -> None:
        super().__init__(first, second)
        self.shape = shape
        self.form = form

    @property
    def weight(self) -> Tensor:
        """The dense weight that both layers stand for, made anew at each call: the layers themselves are cheaper."""
        u, v = self.matrices()
        return u @ v if self.shape.linear else rebuild(u @ v, self.shape, self.form)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """u and v, as `factor_matrices`."""
        first = self[0]
        assert isinstance(first, Plain)
        rank = shape_of(first).outputs // self.shape.groups
        return factor_matrices(self._weight(0), self._weight(1), self.shape, self.form, rank)

    @torch.no_grad()
    def set_matrices(self, u: Tensor, v: Tensor) -> None:
        """Takes other factors of the same size."""
        for index, kernel in enumerate(factor_weights(u, v, *factor_shapes(self.shape, self.form, u.shape[-1]))):
            weight = self._weight(index)
            weight.copy_(kernel.reshape(weight.shape))

    @property
    def bias(self) -> nn.Parameter | None:
        """Of the second layer."""
        bias = self[1].bias
        assert bias is None or isinstance(bias, nn.Parameter)
        return bias

    def _weight(self, index: int) -> Tensor:
        weight = self[index].weight
        assert isinstance(weight, Tensor)
        return weight


class FusedConv(ConvFace, FusedPair):
    """Two convolutions in a row: (N, inputs, ...) -> (N, outputs, ...)."""


class FusedLinear(LinearFace, FusedPair):
    """Two dense layers in a row: (..., inputs) -> (..., outputs)."""


def fused_pair(shape: LayerShape, form: Form, first: nn.Module, second: nn.Module) -> FusedPair:
    """Two plain layers as one of the right kind."""
    kind = FusedLinear if shape.linear else FusedConv
    return kind(shape, form, first, second)


def _padding(shape: LayerShape) -> tuple[int, ...] | str:
    # Only padding="same" makes uneven amounts, and it makes the same ones again.
    return tuple(before for before, _ in shape.padding) if shape.even else "same"


def _output_padding(shape: LayerShape) -> tuple[int, ...]:
    return shape.output_padding or (0,) * len(shape.kernel)


def plain_layer(shape: LayerShape, weight: Tensor, bias: Tensor | None) -> Plain:
    """A layer of torch's own, of this geometry, with these values."""
    options: dict[str, Any] = {"bias": bias is not None, "device": weight.device, "dtype": weight.dtype}
    if shape.linear:
        weight = weight.reshape(shape.outputs, shape.inputs)
    else:
        options |= {
            "kernel_size": shape.kernel,
            "stride": shape.stride,
            "padding": _padding(shape),
            "dilation": shape.dilation,
            "groups": shape.groups,
            "padding_mode": shape.padding_mode,
        }
        if shape.transposed:
            options["output_padding"] = _output_padding(shape)
    layer = KINDS[shape.kind](shape.inputs, shape.outputs, **options)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(bias)
    return layer
