"""What the second of two factors sees of whole windows, through the first one.

The first factor takes some axes of the window; the second one's taps on the other axes lay it on one place after the
other, no two of them on the same. So the weight on whole windows, tap by tap, is the second factor's part for a tap
times the first one.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from .forms import Form, factor_shapes, matricise, rebuild
from .moments import PairMoments
from .shapes import LayerShape


def taps_of(shape: LayerShape, form: Form) -> Tensor:
    """For each tap of the second factor's kernel, the columns of whole windows on which the first factor lies.

    Returns:
        (taps, columns of the form); every column of the windows is there once.
    """
    first, second = factor_shapes(shape, form, 1)
    columns = torch.arange(shape.inputs // shape.groups * math.prod(shape.kernel)).reshape(-1, *shape.kernel)
    taps = []
    for tap in itertools.product(*map(range, second.kernel)):
        there: Any = (slice(None), *(slice(at, at + size) for at, size in zip(tap, first.kernel, strict=True)))
        taps.append(columns[there].flatten())
    return torch.stack(taps)


def first_moments(whole: PairMoments, shape: LayerShape, form: Form) -> PairMoments | None:
    """What `pair_moments` finds for a form, as a part of what it finds for whole windows.

    Args:
        whole: of one network.
        shape, form: of the layer.

    Returns:
        None where no tap lays the first factor on just what it sees: on the axes that it does not take each pixel
        once, and no padding. The middle tap of windows that are padded to the map's size does.
    """
    if form is Form.CHANNEL:
        return whole
    if shape.linear or shape.transposed:
        return None
    _, second = factor_shapes(shape, form, 1)
    place = 0
    for taps, stride, dilation, padding in zip(
        second.kernel, second.stride, second.dilation, second.padding, strict=True
    ):
        tap, off = divmod(padding[0], dilation)
        if off or tap >= taps or stride != 1 or sum(padding) != dilation * (taps - 1):
            return None
        place = place * taps + tap
    columns = taps_of(shape, form)[place].to(whole.second.device)
    moment, mean = (part.index_select(-1, columns) for part in (whole.second, whole.mean_z))
    moment = moment.index_select(-2, columns)
    return PairMoments(moment, moment, mean, mean)


def tap_by_tap(part: Tensor, shape: LayerShape, form: Form, axes: int = 1) -> Tensor:
    """A copy whose columns of whole windows, on so many of the last axes, go tap by tap, as `taps_of` has them."""
    order, sizes = _order(shape, form)
    lead, split = part.dim() - axes, part.reshape(*part.shape[: part.dim() - axes], *sizes * axes)
    places = [lead + axis * len(sizes) + place for axis in range(axes) for place in order]
    return split.permute(*range(lead), *places).clone(memory_format=torch.contiguous_format).view(part.shape)


def in_windows(part: Tensor, shape: LayerShape, form: Form) -> Tensor:
    """Columns on the last axis, tap by tap, as whole windows have them."""
    order, sizes = _order(shape, form)
    lead, split = part.dim() - 1, part.reshape(*part.shape[:-1], *(sizes[place] for place in order))
    back = (lead + order.index(place) for place in range(len(order)))
    return split.permute(*range(lead), *back).reshape(part.shape)


def _order(shape: LayerShape, form: Form) -> tuple[list[int], tuple[int, ...]]:
    """Axes of a window, (channels, kernel...), those first that the first factor does not take; and their sizes."""
    taken = form.taken(len(shape.kernel))
    left, there = ([1 + axis for axis, take in enumerate(taken) if take is wanted] for wanted in (False, True))
    return [*left, 0, *there], (shape.inputs // shape.groups, *shape.kernel)


def second_layer(left: Tensor, shape: LayerShape, form: Form) -> Tensor:
    """A left factor (..., rows, r) as the second layer's matrix in the form `channel`: (groups, m, r taps)."""
    rank = left.shape[-1]
    _, second = factor_shapes(shape, form, rank)
    matrix = matricise(rebuild(left, second, Form.POINTWISE), second, Form.CHANNEL)
    return matrix.reshape(shape.groups, -1, rank * math.prod(second.kernel))


def left_factor(matrix: Tensor, shape: LayerShape, form: Form, rank: int) -> Tensor:
    """The inverse of `second_layer`."""
    _, second = factor_shapes(shape, form, rank)
    return matricise(rebuild(matrix, second, Form.CHANNEL), second, Form.POINTWISE)


def onto_windows(second: Tensor, v: Tensor) -> Tensor:
    """The weight on whole windows of two factors.

    Args:
        second: (groups, m, r taps), as the form `channel` has the second layer's.
        v: (groups, r, columns of the form).

    Returns:
        (groups, m, columns), tap by tap.
    """
    parts = second.reshape(*second.shape[:2], v.shape[1], -1).movedim(-1, 1)
    return (parts @ v.unsqueeze(1)).movedim(1, 2).flatten(2)


def through_first(weight: Tensor, v: Tensor) -> Tensor:
    """The adjoint of `onto_windows`: (groups, m, columns) -> (groups, m, r taps)."""
    groups, rows = weight.shape[:2]
    taken = (weight.reshape(groups, -1, v.shape[-1]) @ v.mT).reshape(groups, rows, -1, v.shape[1])
    return taken.transpose(2, 3).flatten(2)
