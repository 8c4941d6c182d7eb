"""Forms: how a kernel becomes two.

A form is the set of kernel axes that the first of two layers takes; the second takes the others. The weight
W (outputs, inputs / groups, *kernel) is unfolded into a matrix M whose columns are the inputs and the axes taken, and
whose rows are the outputs and the others; M = u diag(s) v of rank r then reads back as a first layer v (inputs -> r)
and a second layer u (r -> outputs), each a point on the axes that it does not take:

    form          the first layer takes      of a k_h x k_w kernel, then      and
    channel       every axis                 k_h x k_w, strided               1 x 1
    pointwise     none                       1 x 1                            k_h x k_w, strided
    spatial       height                     k_h x 1                          1 x k_w
    spatial_t     width                      1 x k_w                          k_h x 1
    depth         depth, of a video's kernel, whose first axis is time
    depth_height  depth and height
    depth_width   depth and width
    height_width  height and width, and time comes after: (2+1)-d

With groups every matrix gains a leading axis of that length, and r counts per group. Padding, stride, dilation and
output padding act on each axis alone and go with it, so that every form is exact in every padding mode, for plain and
for transposed convolutions.

Source: channel, Zhang et al. 2015; pointwise, Denil et al. 2013; spatial, Jaderberg et al. 2014; height_width, Tran
et al. 2018.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable
from dataclasses import replace
from enum import Enum

from torch import Tensor

from .shapes import LayerShape, Map

_AXES = "dhw"
"""Depth, height and width; a 2-d kernel has the last two, a 1-d one the last."""


class Form(str, Enum):
    """One of the ways to cut a kernel in two."""

    CHANNEL = "channel"
    POINTWISE = "pointwise"
    SPATIAL = "spatial"
    SPATIAL_T = "spatial_t"
    DEPTH = "depth"
    DEPTH_HEIGHT = "depth_height"
    DEPTH_WIDTH = "depth_width"
    HEIGHT_WIDTH = "height_width"

    def __str__(self) -> str:
        return self.value

    def taken(self, axes: int) -> tuple[bool, ...]:
        """Of the kernel's axes, those that the first layer takes."""
        return tuple(axis in _TAKEN[self] for axis in _AXES[-axes:])


_TAKEN = {
    Form.CHANNEL: _AXES,
    Form.POINTWISE: "",
    Form.SPATIAL: "h",
    Form.SPATIAL_T: "w",
    Form.DEPTH: "d",
    Form.DEPTH_HEIGHT: "dh",
    Form.DEPTH_WIDTH: "dw",
    Form.HEIGHT_WIDTH: "hw",
}


def forms_for(shape: LayerShape) -> tuple[Form, ...]:
    """The forms that differ for this layer, of those that cut the same matrix the cheapest.

    An axis of one pixel makes no difference to the matrix, and two axes that are alike, unstrided, may change places.
    """
    cheapest: dict[Hashable, Form] = {}
    for form in Form:
        taken = [_likeness(shape, axis) for axis, take in enumerate(form.taken(len(shape.kernel))) if take]
        same = tuple(sorted(filter(None, taken)))
        if same not in cheapest or _macs(shape, form) < _macs(shape, cheapest[same]):
            cheapest[same] = form
    return tuple(sorted(cheapest.values(), key=list(Form).index))


def forms_of(shape: LayerShape) -> tuple[Form, ...]:
    """Every form that this layer's kernel has axes for, those included that cost the same as another."""
    axes = set(_AXES[-len(shape.kernel) :])
    split = [form for form in Form if set(_TAKEN[form]) < axes]
    return (Form.CHANNEL,) if max(shape.kernel) == 1 else (Form.CHANNEL, *split)


def asked_of(shape: LayerShape, asked: Collection[Form]) -> tuple[Form, ...]:
    """A layer's forms that are among those asked for, or all of them where none is.

    Who asks for `spatial` means every way to split the window.
    """
    own = forms_for(shape)
    split = Form.SPATIAL in asked
    whole = (Form.CHANNEL, Form.POINTWISE)
    return tuple(form for form in own if form in asked or (split and form not in whole)) or own


def _likeness(shape: LayerShape, axis: int) -> str:
    """The same for axes that may change places; "" for one of a single pixel."""
    if shape.kernel[axis] == 1:
        return ""
    if shape.stride[axis] != 1:
        return f"axis {axis}"
    sizes = [(call.size_in[axis], call.size_out[axis]) for call in shape.calls]
    return f"{shape.kernel[axis]} on {sizes}"


def _macs(shape: LayerShape, form: Form) -> int:
    first, second = factor_shapes(shape, form, 1)
    return first.macs + second.macs


def matrix_size(shape: LayerShape, form: Form) -> tuple[int, int]:
    """(rows, columns) of M for one group."""
    taken = form.taken(len(shape.kernel))
    columns = math.prod(size for size, take in zip(shape.kernel, taken, strict=True) if take)
    rows = math.prod(shape.kernel) // columns
    return shape.outputs // shape.groups * rows, shape.inputs // shape.groups * columns


def full_rank(shape: LayerShape, form: Form) -> int:
    """The rank at which the form loses nothing; a product has no more than there are channels between its layers."""
    most = min(matrix_size(shape, form))
    return most if shape.between is None else min(most, shape.between)


def _unfolding(shape: LayerShape, form: Form) -> tuple[list[int], list[int]]:
    """Sizes of a weight's axes, groups apart, and their order in M: groups, rows, columns."""
    across, along, *kernel = shape.weight
    outputs, inputs = (2, 1) if shape.transposed else (1, 2)
    taken = form.taken(len(kernel))
    rows = [axis for axis, take in enumerate(taken, 3) if not take]
    columns = [axis for axis, take in enumerate(taken, 3) if take]
    return [shape.groups, across // shape.groups, along, *kernel], [0, outputs, *rows, inputs, *columns]


def matricise(weight: Tensor, shape: LayerShape, form: Form) -> Tensor:
    """Unfolds a weight.

    Args:
        weight: `shape.weight`, or (outputs, inputs) for a linear layer.

    Returns:
        M (rows, columns), or (groups, rows, columns) when there is more than one group.
    """
    sizes, order = _unfolding(shape, form)
    matrix = weight.reshape(sizes).permute(order).reshape(shape.groups, *matrix_size(shape, form))
    return matrix.squeeze(0) if shape.groups == 1 else matrix


def rebuild(matrix: Tensor, shape: LayerShape, form: Form) -> Tensor:
    """Folds a matrix back into a weight of `shape.weight`; the inverse of `matricise`."""
    sizes, order = _unfolding(shape, form)
    if order == sorted(order):
        return matrix.reshape(shape.weight)
    back = [order.index(axis) for axis in range(len(order))]
    return matrix.reshape([sizes[axis] for axis in order]).permute(back).reshape(shape.weight)


def factor_shapes(shape: LayerShape, form: Form, rank: int) -> tuple[LayerShape, LayerShape]:
    """Geometry of the two layers that a form makes of one, first and second; the second has the bias."""
    taken = form.taken(len(shape.kernel))
    between = [
        tuple(out if take else into for into, out, take in zip(*call, taken, strict=True)) for call in shape.calls
    ]
    first = replace(
        shape.along(taken),
        outputs=rank * shape.groups,
        bias=False,
        between=None,
        calls=tuple(Map(call.size_in, size) for call, size in zip(shape.calls, between, strict=True)),
    )
    second = replace(
        shape.along([not take for take in taken]),
        inputs=rank * shape.groups,
        between=None,
        calls=tuple(Map(size, call.size_out) for call, size in zip(shape.calls, between, strict=True)),
    )
    return first, second


def plain_shapes(shape: LayerShape) -> tuple[LayerShape, ...]:
    """Geometry of what runs as long as nothing is cut: the layer, or the two of a product."""
    return (shape,) if shape.between is None else factor_shapes(shape, Form.CHANNEL, shape.between)


def factor_weights(u: Tensor, v: Tensor, first: LayerShape, second: LayerShape) -> tuple[Tensor, Tensor]:
    """Kernels of the two layers: v is the first one's columns, and u the second one's rows.

    Args:
        u: (rows, r), or (groups, rows, r).
        v: (r, columns), or (groups, r, columns).
        first, second: as `factor_shapes` says.
    """
    return rebuild(v, first, Form.CHANNEL), rebuild(u, second, Form.POINTWISE)


def factor_matrices(
    first_weight: Tensor, second_weight: Tensor, shape: LayerShape, form: Form, rank: int
) -> tuple[Tensor, Tensor]:
    """u and v of two kernels; the inverse of `factor_weights`."""
    first, second = factor_shapes(shape, form, rank)
    return matricise(second_weight, second, Form.POINTWISE), matricise(first_weight, first, Form.CHANNEL)
