"""Forms: how a kernel becomes two.

A weight W (outputs, inputs / groups, k_h, k_w) is unfolded into a matrix M (rows x columns); M = u diag(s) v
of rank r then reads back as a first layer v (inputs -> r) and a second layer u (r -> outputs):

    form       M                                     first layer v        second layer u
    channel    (outputs) x (inputs k_h k_w)          k_h x k_w, strided   1 x 1
    pointwise  (outputs k_h k_w) x (inputs)          1 x 1                k_h x k_w, strided
    spatial    (outputs k_w) x (inputs k_h)          k_h x 1              1 x k_w
    spatial_t  (outputs k_h) x (inputs k_w)          1 x k_w              k_h x 1

With groups every matrix gains a leading axis of that length, and r counts per group. Padding acts on each axis
alone, so each factor pads the axis it convolves and every form is exact in every padding mode.

Source: channel, Zhang et al. 2015; pointwise, Denil et al. 2013; spatial, Jaderberg et al. 2014.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum

from torch import Tensor

from .shapes import LayerShape, Map, Padding


class Form(str, Enum):
    """One of the ways to cut a kernel in two."""

    CHANNEL = "channel"
    POINTWISE = "pointwise"
    SPATIAL = "spatial"
    SPATIAL_T = "spatial_t"

    def __str__(self) -> str:
        return self.value


def forms_for(shape: LayerShape) -> tuple[Form, ...]:
    """The forms that differ for this layer.

    A 1 x 1 kernel has one form and a 1 x k kernel two; the transposed spatial form costs something else only
    where the layer is strided or not square.
    """
    if shape.kernel == (1, 1):
        return (Form.CHANNEL,)
    if 1 in shape.kernel:
        return (Form.CHANNEL, Form.POINTWISE)
    square = (
        shape.kernel[0] == shape.kernel[1]
        and shape.stride == (1, 1)
        and all(m.height_in == m.width_in and m.height_out == m.width_out for m in shape.calls)
    )
    both = (Form.CHANNEL, Form.POINTWISE, Form.SPATIAL)
    return both if square else (*both, Form.SPATIAL_T)


def matrix_size(shape: LayerShape, form: Form) -> tuple[int, int]:
    """(rows, columns) of M for one group."""
    outputs, inputs, height, width = shape.weight
    outputs //= shape.groups
    return {
        Form.CHANNEL: (outputs, inputs * height * width),
        Form.POINTWISE: (outputs * height * width, inputs),
        Form.SPATIAL: (outputs * width, inputs * height),
        Form.SPATIAL_T: (outputs * height, inputs * width),
    }[form]


def full_rank(shape: LayerShape, form: Form) -> int:
    """The rank at which the form loses nothing."""
    return min(matrix_size(shape, form))


# Where the five axes (group, output, input, k_h, k_w) go: rows first, then columns.
_AXES = {
    Form.CHANNEL: (0, 1, 2, 3, 4),
    Form.POINTWISE: (0, 1, 3, 4, 2),
    Form.SPATIAL: (0, 1, 4, 2, 3),
    Form.SPATIAL_T: (0, 1, 3, 2, 4),
}


def matricise(weight: Tensor, shape: LayerShape, form: Form) -> Tensor:
    """Unfolds a weight.

    Args:
        weight: `shape.weight`, or (outputs, inputs) for a linear layer.

    Returns:
        M (rows, columns), or (groups, rows, columns) when there is more than one group.
    """
    outputs, inputs, height, width = shape.weight
    split = weight.reshape(shape.groups, outputs // shape.groups, inputs, height, width)
    matrix = split.permute(_AXES[form]).reshape(shape.groups, *matrix_size(shape, form))
    return matrix.squeeze(0) if shape.groups == 1 else matrix


def rebuild(matrix: Tensor, shape: LayerShape, form: Form) -> Tensor:
    """Folds a matrix back into a weight of `shape.weight`; the inverse of `matricise`."""
    outputs, inputs, height, width = shape.weight
    sizes = (shape.groups, outputs // shape.groups, inputs, height, width)
    axes = _AXES[form]
    back = [axes.index(axis) for axis in range(5)]
    return matrix.reshape([sizes[axis] for axis in axes]).permute(back).reshape(shape.weight)


def factor_shapes(shape: LayerShape, form: Form, rank: int) -> tuple[LayerShape, LayerShape]:
    """Geometry of the two layers that a form makes of one, first and second; the second has the bias."""
    k_h, k_w = shape.kernel
    s_h, s_w = shape.stride
    d_h, d_w = shape.dilation
    pad = shape.padding
    down = ((k_h, 1), (s_h, 1), Padding(pad.top, pad.bottom, 0, 0), (d_h, 1))
    across = ((1, k_w), (1, s_w), Padding(0, 0, pad.left, pad.right), (1, d_w))
    whole = (shape.kernel, shape.stride, shape.padding, shape.dilation)
    point = ((1, 1), (1, 1), Padding(), (1, 1))
    first_window, second_window = {
        Form.CHANNEL: (whole, point),
        Form.POINTWISE: (point, whole),
        Form.SPATIAL: (down, across),
        Form.SPATIAL_T: (across, down),
    }[form]
    between = [_between(call, form) for call in shape.calls]
    kernel, stride, padding, dilation = first_window
    first = replace(
        shape,
        outputs=rank * shape.groups,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        bias=False,
        calls=tuple(Map(c.height_in, c.width_in, h, w) for c, (h, w) in zip(shape.calls, between, strict=True)),
    )
    kernel, stride, padding, dilation = second_window
    second = replace(
        shape,
        inputs=rank * shape.groups,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        calls=tuple(Map(h, w, c.height_out, c.width_out) for c, (h, w) in zip(shape.calls, between, strict=True)),
    )
    return first, second


def _between(call: Map, form: Form) -> tuple[int, int]:
    """Height and width of the map between the two layers."""
    return {
        Form.CHANNEL: (call.height_out, call.width_out),
        Form.POINTWISE: (call.height_in, call.width_in),
        Form.SPATIAL: (call.height_out, call.width_in),
        Form.SPATIAL_T: (call.height_in, call.width_out),
    }[form]


def factor_weights(u: Tensor, v: Tensor, shape: LayerShape, form: Form) -> tuple[Tensor, Tensor]:
    """Kernels of the two layers.

    Args:
        u: (rows, r), or (groups, rows, r).
        v: (r, columns), or (groups, r, columns).

    Returns:
        first (groups r, inputs / groups, ., .) and second (outputs, r, ., .), as `factor_shapes` says.
    """
    rank = u.shape[-1]
    first_shape, second_shape = factor_shapes(shape, form, rank)
    first = v.reshape(first_shape.weight)
    outputs, _, height, width = second_shape.weight
    second = u.reshape(outputs, height, width, rank).permute(0, 3, 1, 2)
    return first, second
