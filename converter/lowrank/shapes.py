"""The geometry of one layer: everything that its cost depends on, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from torch import nn

from ...files import quoted
from ..errors import PlanError
from ..json_values import printable, sequence, whole

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Plain = Convolution | nn.Linear
"""The layers of torch's own that hold one weight, and can hold two."""

KINDS: Mapping[str, type[Plain]] = {
    "linear": nn.Linear,
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
    "conv_transpose1d": nn.ConvTranspose1d,
    "conv_transpose2d": nn.ConvTranspose2d,
    "conv_transpose3d": nn.ConvTranspose3d,
}

_LARGEST_SIZE = 2**31 - 1
_MOST_CALLS = 10_000


class Map(NamedTuple):
    """Sizes of what one call of a layer reads and writes, by kernel axis (a dense layer's rows count as width)."""

    size_in: tuple[int, ...]
    size_out: tuple[int, ...]


@dataclass(frozen=True)
class LayerShape:
    """A convolution's or dense layer's geometry.

    Attributes:
        kind: of `KINDS`; a linear layer is a 1 x 1 convolution over its rows.
        inputs, outputs: channels (features).
        kernel, stride, dilation: one number for each axis, such as (height, width).
        padding: (before, after) for each axis, resolved to pixels, so "same" and "valid" do not appear. Of a
            transposed layer it is cut off the output instead, as torch has it.
        padding_mode: zeros, reflect, replicate or circular.
        groups: of channels; each group of outputs reads its own inputs.
        bias: whether there is one.
        calls: the maps of each call in one forward pass of one sample.
        output_padding: of a transposed layer, rows more at the end of each axis; () stands for none.
        between: channels between the two layers that this one is the product of; None for a single layer.
    """

    kind: str
    inputs: int
    outputs: int
    kernel: tuple[int, ...] = (1, 1)
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[tuple[int, int], ...] = ((0, 0), (0, 0))
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1
    padding_mode: str = "zeros"
    bias: bool = True
    calls: tuple[Map, ...] = ()
    output_padding: tuple[int, ...] = ()
    between: int | None = None

    @property
    def linear(self) -> bool:
        """Whether it is a dense layer, whose channels are the last axis."""
        return self.kind == "linear"

    @property
    def transposed(self) -> bool:
        """Whether each pixel is spread by the kernel instead of gathered by it."""
        return self.kind.startswith("conv_transpose")

    @property
    def weight(self) -> tuple[int, ...]:
        """Shape of the weight, (outputs, inputs / groups, *kernel); transposed, with inputs and outputs exchanged."""
        across, along = (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs)
        return (across, along // self.groups, *self.kernel)

    @property
    def macs(self) -> int:
        """Multiply-adds of one sample's forward pass, through the whole weight at once."""
        pixels = (call.size_in if self.transposed else call.size_out for call in self.calls)
        return math.prod(self.weight) * sum(map(math.prod, pixels))

    @property
    def params(self) -> int:
        """Weights and biases."""
        return math.prod(self.weight) + (self.outputs if self.bias else 0)

    @property
    def even(self) -> bool:
        """Whether both ends of each axis are padded alike, so that a plain number can say it."""
        return all(before == after for before, after in self.padding)

    def sparser(self, distance: int) -> LayerShape:
        """The same layer at every so many of its places along each axis."""
        return replace(self, stride=tuple(stride * distance for stride in self.stride))

    def along(self, taken: Sequence[bool]) -> LayerShape:
        """The same layer with its window on some axes only, and a point on the others."""

        def kept(values: tuple[Any, ...], point: Any) -> tuple[Any, ...]:
            return tuple(value if take else point for value, take in zip(values, taken, strict=True))

        return replace(
            self,
            kernel=kept(self.kernel, 1),
            stride=kept(self.stride, 1),
            padding=kept(self.padding, (0, 0)),
            dilation=kept(self.dilation, 1),
            output_padding=kept(self.output_padding, 0) if self.output_padding else (),
        )

    def channel_axis(self, axes: int) -> int:
        """Of an input or output of so many axes, with a batch or without."""
        return axes - 1 if self.linear else axes - 1 - len(self.kernel)

    def with_calls(self, calls: tuple[Map, ...]) -> LayerShape:
        """The same layer, called on other maps."""
        return replace(self, calls=calls)

    def same_layer(self, other: LayerShape) -> bool:
        """Whether both describe the same layer, wherever it is called."""
        return replace(self, calls=(), between=None) == replace(other, calls=(), between=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, lists without lists in them: of padding, before and after of each axis in turn."""
        values = asdict(self) | {"padding": _flat(self.padding), "calls": [_flat(call) for call in self.calls]}
        return {name: value for name, value in values.items() if value not in ((), None)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LayerShape:
        """Reads what `to_dict` wrote.

        Raises:
            PlanError: a field is missing, unknown or of the wrong kind.
        """
        try:
            kind = printable(values["kind"], "kind")
            axes = _axes(kind)
            more = values.get("output_padding", ())
            shape = cls(
                kind=kind,
                inputs=whole(values["inputs"], "inputs", 1, _LARGEST_SIZE),
                outputs=whole(values["outputs"], "outputs", 1, _LARGEST_SIZE),
                kernel=_sizes(values["kernel"], "kernel", axes, least=1),
                stride=_sizes(values["stride"], "stride", axes, least=1),
                padding=_pairs(_sizes(values["padding"], "padding", 2 * axes, least=0)),
                dilation=_sizes(values["dilation"], "dilation", axes, least=1),
                groups=whole(values["groups"], "groups", 1, _LARGEST_SIZE),
                padding_mode=printable(values["padding_mode"], "padding_mode"),
                bias=values["bias"] is True,
                calls=tuple(
                    _map(_sizes(call, "a call", 2 * axes, least=0))
                    for call in sequence(values["calls"], "calls", _MOST_CALLS)
                ),
                output_padding=_sizes(more, "output_padding", axes, least=0) if more else (),
                between=whole(values["between"], "between", 1, _LARGEST_SIZE) if "between" in values else None,
            )
        except KeyError as error:
            raise PlanError(f"a layer's shape has no {quoted(error)}; write the plan anew") from error
        except (TypeError, ValueError) as error:
            raise PlanError(f"a layer's shape does not read ({quoted(error)}); write the plan anew") from error
        if shape.inputs % shape.groups or shape.outputs % shape.groups:
            raise PlanError(
                f"a layer's shape has {shape.inputs} inputs and {shape.outputs} outputs in {shape.groups} groups, "
                "which do not divide them; write the plan anew"
            )
        return shape


def shape_of(layer: Plain) -> LayerShape:
    """Geometry of a plain layer, without the maps it is called on."""
    if isinstance(layer, nn.Linear):
        return LayerShape("linear", layer.in_features, layer.out_features, bias=layer.bias is not None)
    kind = next(kind for kind, plain in KINDS.items() if isinstance(layer, plain))
    return LayerShape(
        kind,
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        _resolved(layer),
        layer.dilation,
        layer.groups,
        layer.padding_mode,
        layer.bias is not None,
        output_padding=layer.output_padding if any(layer.output_padding) else (),
    )


def _axes(kind: str) -> int:
    if kind not in KINDS:
        raise ValueError(f"kind {quoted(repr(kind))} is not one of {', '.join(KINDS)}")
    return 2 if kind == "linear" else int(kind[-2])


def _map(sizes: tuple[int, ...]) -> Map:
    axes = len(sizes) // 2
    return Map(sizes[:axes], sizes[axes:])


def _pairs(numbers: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def _flat(pairs: Sequence[Sequence[int]]) -> list[int]:
    return [number for pair in pairs for number in pair]


def _sizes(values: object, name: str, count: int, *, least: int) -> tuple[int, ...]:
    sizes = tuple(whole(size, name, least, _LARGEST_SIZE) for size in sequence(values, name, count))
    if len(sizes) != count:
        raise ValueError(f"{name} has {len(sizes)} numbers; {count} belong there")
    return sizes


def _resolved(layer: Convolution) -> tuple[tuple[int, int], ...]:
    if layer.padding == "valid":
        return tuple((0, 0) for _ in layer.kernel_size)
    if layer.padding == "same":
        totals = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((int(amount), int(amount)) for amount in layer.padding)
