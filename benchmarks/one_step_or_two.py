"""Seconds of a low-rank convolution, forward and back: in two steps, against one with the weight built for it.

    python benchmarks/one_step_or_two.py

Prints, for layers of several sizes and forms, the ratio of the two times at several parts of the dense MACs: what a
layer takes below `_TWO_STEPS_PAY_BELOW` is two steps.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dprp.converter import keep_freed_memory
from dprp.converter.lowrank.decomposition import decompose
from dprp.converter.lowrank.forms import Form, factor_shapes, full_rank, matricise
from dprp.converter.lowrank.layers import LowRank, convolve, low_rank
from dprp.converter.lowrank.shapes import LayerShape, Map, shape_of

_CASES = ((16, 32, 128), (32, 16, 128), (64, 8, 128), (64, 56, 8), (128, 28, 8), (256, 14, 8))
"""Channels, side of the map, batch."""
_PARTS = (0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_ROUNDS = 7


def main() -> None:
    keep_freed_memory()
    torch.manual_seed(0)
    for channels, side, batch in _CASES:
        dense = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        shape = shape_of(dense).with_calls((Map((side, side), (side, side)),))
        x = torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
        for form in (Form.SPATIAL, Form.CHANNEL):
            matrix = matricise(dense.weight.detach(), shape, form)
            found = []
            for part in _PARTS:
                rank = _rank(shape, form, part)
                layer = low_rank(shape, form, decompose(matrix, rank), None)
                macs = sum(one.macs for one in factor_shapes(shape, form, rank)) / shape.macs
                found.append(f"{macs:.2f}: {_ratio(layer, x):.2f}")
            print(
                f"{channels:3} channels, {side:2} x {side:2}, batch {batch:3}, {form:8} ",
                "  ".join(found),
                flush=True,
            )


def _rank(shape: LayerShape, form: Form, part: float) -> int:
    per_rank = sum(one.macs for one in factor_shapes(shape, form, 1))
    step = 8 if shape.outputs > 16 else 1
    return min(max(step, round(part * shape.macs / per_rank / step) * step), full_rank(shape, form))


def _in_one(layer: LowRank, x: Tensor) -> Tensor:
    return convolve(x, layer.weight, None, layer.shape)


def _in_two(layer: LowRank, x: Tensor) -> Tensor:
    inner, outer = layer.kernels()
    return convolve(convolve(x, inner, None, layer.steps.first), outer, None, layer.steps.second)


def _ratio(layer: LowRank, x: Tensor) -> float:
    """Of the medians, taken in turns."""
    times: dict[Callable[[LowRank, Tensor], Tensor], list[float]] = {_in_two: [], _in_one: []}
    x.requires_grad_()
    gradient = torch.randn(x.shape).contiguous(memory_format=torch.channels_last)
    repeats = min(30, max(3, int(4e8 / (layer.shape.macs * len(x)))))
    for _ in range(_ROUNDS):
        for way, found in times.items():
            for step in range(repeats + 1):
                if step == 1:  # the first warms up
                    began = time.perf_counter()
                way(layer, x).backward(gradient)
                x.grad = None
                layer.zero_grad()
            found.append(time.perf_counter() - began)
    two, one = (statistics.median(found) for found in times.values())
    return two / one


if __name__ == "__main__":
    main()
