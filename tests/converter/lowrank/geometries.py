"""Layers of every kind and any geometry, for tests that must hold for all of them."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from dprp.converter.lowrank.shapes import KINDS, LayerShape, Map, Plain, shape_of


@st.composite
def layers(
    draw: st.DrawFn, kinds: tuple[str, ...] = tuple(KINDS), dtype: torch.dtype = torch.float64
) -> tuple[Plain, Tensor]:
    """A layer, and an input of two samples for it."""
    kind = draw(st.sampled_from(kinds))
    groups = 1 if kind == "linear" else draw(st.sampled_from([1, 1, 1, 2, 4]))
    inputs, outputs = groups * draw(st.integers(1, 4)), groups * draw(st.integers(1, 4))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    options: dict[str, Any] = {"bias": draw(st.booleans()), "dtype": dtype}
    if kind == "linear":
        return nn.Linear(inputs, outputs, **options), torch.randn(2, draw(st.integers(1, 3)), inputs, dtype=dtype)
    axes = int(kind[-2])

    def sizes(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(least, most)) for _ in range(axes))

    options |= {"groups": groups, "kernel_size": sizes(1, 4 if axes < 3 else 3), "dilation": sizes(1, 2)}
    if "transpose" in kind:
        options |= {"stride": sizes(1, 3), "padding": sizes(0, 2)}
        # torch wants it below the stride or the dilation of its axis.
        most = [max(s, d) - 1 for s, d in zip(options["stride"], options["dilation"], strict=True)]
        options["output_padding"] = tuple(draw(st.integers(0, size)) for size in most)
        least, room = 5, 6
    else:
        options["padding"] = draw(st.sampled_from(["same", "valid"]) | st.tuples(*[st.integers(0, 2)] * axes))
        options["stride"] = (1,) * axes if options["padding"] == "same" else sizes(1, 3)
        options["padding_mode"] = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        least, room = (8, 11) if axes < 3 else (6, 7)
    layer = KINDS[kind](inputs, outputs, **options)
    return layer, torch.randn(2, inputs, *sizes(least, room), dtype=dtype)


def called(layer: Plain, x: Tensor) -> LayerShape:
    """Its geometry, with the map of this input."""
    shape = shape_of(layer)
    if shape.linear:
        return shape.with_calls((Map((1, x.shape[1]), (1, x.shape[1])),))
    return shape.with_calls((Map(tuple(x.shape[2:]), tuple(layer(x).shape[2:])),))
