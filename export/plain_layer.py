"""The geometry of one layer as ONNX sees it, for one sample: all that its latency depends on."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from .errors import ExportError

CONVOLUTION, LINEAR = "conv2d", "linear"


@dataclass(frozen=True)
class PlainLayer:
    """One Conv, or one Gemm or MatMul, on one map.

    Attributes:
        kind: "conv2d" or "linear".
        inputs, outputs: channels (features), >= 1.
        kernel, stride, dilation: (height, width), each >= 1; a linear layer has ones.
        padding: pixels of zeros (top, bottom, left, right), each >= 0.
        groups: divides inputs and outputs; the weight is (outputs, inputs / groups, *kernel).
        bias: whether there is one.
        height, width: pixels of the input map; a linear layer has height 1 and width = rows per sample.
    """

    kind: str
    inputs: int
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = True
    height: int = 1
    width: int = 1

    def __str__(self) -> str:
        """Every attribute in one line, the same for equal layers only: a key of the cache on disk."""
        bias = "bias" if self.bias else "no bias"
        if self.kind == LINEAR:
            return f"linear {self.inputs}->{self.outputs} {bias} rows {self.width}"
        pads = ",".join(map(str, self.padding))
        return (
            f"conv2d {self.inputs}->{self.outputs} kernel {_by(self.kernel)} stride {_by(self.stride)} "
            f"padding {pads} dilation {_by(self.dilation)} groups {self.groups} {bias} "
            f"map {self.height}x{self.width}"
        )

    @property
    def weights(self) -> int:
        """Numbers in the weight, without the bias."""
        return self.outputs * (self.inputs // self.groups) * self.kernel[0] * self.kernel[1]

    @property
    def output_map(self) -> tuple[int, int]:
        """Height and width of the output map."""
        top, bottom, left, right = self.padding
        spans = ((self.height, top + bottom), (self.width, left + right))
        height, width = (
            (size + pad - dilation * (kernel - 1) - 1) // stride + 1
            for (size, pad), kernel, stride, dilation in zip(
                spans, self.kernel, self.stride, self.dilation, strict=True
            )
        )
        return height, width


Chain = tuple[PlainLayer, ...]


def chain_name(chain: Chain) -> str:
    """Every layer of a chain in one line, the same for equal chains only."""
    return " | ".join(map(str, chain))


def check_chain(chain: Chain) -> None:
    """Refuses layers that cannot be, or that do not follow each other.

    Raises:
        ExportError: which layer, and what is wrong with it.
    """
    if not chain:
        raise ExportError("a chain of no layers cannot be timed. Give at least one layer.")
    for layer in chain:
        problem = _problem(layer)
        if problem:
            raise ExportError(f"{layer}: {problem}.")
    for before, after in itertools.pairwise(chain):
        gives = (before.kind, before.outputs, *before.output_map)
        takes = (after.kind, after.inputs, after.height, after.width)
        if gives != takes:
            raise ExportError(f"{after}: cannot follow a layer that gives {gives}. Give it such an input.")


def _problem(layer: PlainLayer) -> str | None:
    if layer.kind not in (CONVOLUTION, LINEAR):
        return f"kind {layer.kind!r} is not known. Give '{CONVOLUTION}' or '{LINEAR}'"
    sizes = (layer.inputs, layer.outputs, layer.groups, layer.height, layer.width)
    if min(*sizes, *layer.kernel, *layer.stride, *layer.dilation) < 1 or min(layer.padding) < 0:
        return "a size is below 1, or a padding below 0"
    if layer.inputs % layer.groups or layer.outputs % layer.groups:
        return f"{layer.groups} groups do not divide {layer.inputs} inputs and {layer.outputs} outputs"
    if min(layer.output_map) < 1:
        return f"its output map would be {_by(layer.output_map)}. Give a larger map or more padding"
    if layer.kind == LINEAR:
        like_a_point = PlainLayer(LINEAR, layer.inputs, layer.outputs, bias=layer.bias, width=layer.width)
        if layer != like_a_point:
            return "a linear layer has height 1, one group, and no kernel, stride, padding or dilation"
    return None


def _by(pair: tuple[int, int]) -> str:
    return f"{pair[0]}x{pair[1]}"
