"""The geometry of one layer: everything that its cost depends on, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from torch import nn

from ...files import quoted
from ..errors import PlanError
from ..json_values import printable, sequence, whole

_LARGEST_SIZE = 2**31 - 1
_MOST_CALLS = 10_000


class Map(NamedTuple):
    """Pixels that one call of a layer reads and writes (a dense layer's rows count as width)."""

    height_in: int
    width_in: int
    height_out: int
    width_out: int


class Padding(NamedTuple):
    """Pixels added on each side."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0

    @property
    def even(self) -> bool:
        """Whether both ends of each axis get the same, so that a plain number can say it."""
        return self.top == self.bottom and self.left == self.right


_NO_PADDING = Padding()


@dataclass(frozen=True)
class LayerShape:
    """A convolution's or dense layer's geometry.

    Attributes:
        kind: "conv2d" or "linear"; a linear layer is a 1 x 1 convolution over its rows.
        inputs, outputs: channels (features).
        kernel, stride, dilation: (height, width).
        padding: resolved to pixels, so "same" and "valid" do not appear.
        padding_mode: zeros, reflect, replicate or circular.
        groups: the weight is (outputs, inputs / groups, *kernel).
        bias: whether there is one.
        calls: the maps of each call in one forward pass of one sample.
    """

    kind: str
    inputs: int
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: Padding = _NO_PADDING
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    padding_mode: str = "zeros"
    bias: bool = True
    calls: tuple[Map, ...] = ()

    @property
    def weight(self) -> tuple[int, int, int, int]:
        """Shape of the weight, (outputs, inputs / groups, height, width)."""
        return (self.outputs, self.inputs // self.groups, *self.kernel)

    @property
    def macs(self) -> int:
        """Multiply-adds of one sample's forward pass."""
        outputs, inputs, height, width = self.weight
        return outputs * inputs * height * width * sum(m.height_out * m.width_out for m in self.calls)

    @property
    def params(self) -> int:
        """Weights and biases."""
        outputs, inputs, height, width = self.weight
        return outputs * inputs * height * width + (outputs if self.bias else 0)

    def with_calls(self, calls: tuple[Map, ...]) -> LayerShape:
        """The same layer, called on other maps."""
        return replace(self, calls=calls)

    def same_layer(self, other: LayerShape) -> bool:
        """Whether both describe the same layer, wherever it is called."""
        return self.with_calls(()) == other.with_calls(())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"padding": list(self.padding), "calls": [list(m) for m in self.calls]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LayerShape:
        """Reads what `to_dict` wrote.

        Raises:
            PlanError: a field is missing, unknown or of the wrong kind.
        """
        try:
            shape = cls(
                kind=printable(values["kind"], "kind"),
                inputs=whole(values["inputs"], "inputs", 1, _LARGEST_SIZE),
                outputs=whole(values["outputs"], "outputs", 1, _LARGEST_SIZE),
                kernel=_pair(values, "kernel"),
                stride=_pair(values, "stride"),
                padding=Padding(*_sizes(values["padding"], "padding", 4, least=0)),
                dilation=_pair(values, "dilation"),
                groups=whole(values["groups"], "groups", 1, _LARGEST_SIZE),
                padding_mode=printable(values["padding_mode"], "padding_mode"),
                bias=values["bias"] is True,
                calls=tuple(
                    Map(*_sizes(call, "a call", 4, least=0))
                    for call in sequence(values["calls"], "calls", _MOST_CALLS)
                ),
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


def shape_of(layer: nn.Conv2d | nn.Linear) -> LayerShape:
    """Geometry of a plain layer, without the maps it is called on."""
    if isinstance(layer, nn.Linear):
        return LayerShape("linear", layer.in_features, layer.out_features, bias=layer.bias is not None)
    kernel = (layer.kernel_size[0], layer.kernel_size[1])
    dilation = (layer.dilation[0], layer.dilation[1])
    return LayerShape(
        "conv2d",
        layer.in_channels,
        layer.out_channels,
        kernel,
        (layer.stride[0], layer.stride[1]),
        _resolved(layer.padding, kernel, dilation),
        dilation,
        layer.groups,
        layer.padding_mode,
        layer.bias is not None,
    )


def _pair(values: Mapping[str, Any], name: str) -> tuple[int, int]:
    height, width = _sizes(values[name], name, 2, least=1)
    return height, width


def _sizes(values: object, name: str, count: int, *, least: int) -> tuple[int, ...]:
    sizes = tuple(whole(size, name, least, _LARGEST_SIZE) for size in sequence(values, name, count))
    if len(sizes) != count:
        raise ValueError(f"{name} has {len(sizes)} numbers; {count} belong there")
    return sizes


def _resolved(padding: str | tuple[int, ...], kernel: tuple[int, int], dilation: tuple[int, int]) -> Padding:
    if padding == "valid":
        return Padding()
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        (top, left) = (total // 2 for total in totals)
        return Padding(top, totals[0] - top, left, totals[1] - left)
    height, width = int(padding[0]), int(padding[1])
    return Padding(height, height, width, width)
