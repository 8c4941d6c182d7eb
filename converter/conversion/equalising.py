"""The scale between two factors, chosen so that the channels between them have equal ranges, or nearly so.

Nothing stands between u and v, so that u D^-1 and D v compute the same for any diagonal D. Integers of 8 bits have
one step for all channels of an activation: where one channel is a hundred times as large as another, nothing of the
other is left. But what D makes larger there it makes smaller in u, whose weights have one step for all channels, too;
so that a part of the way is often better: docs/RESULTS.md has the figures.

Source: cross-layer equalisation, Nagel et al. (2019), "Data-free quantization through weight equalization", with
ranges as seen on images; between linear layers no property of an activation is needed. A part of the way is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..analysis.inputs import Samples
from ..analysis.probe import evaluating
from ..analysis.running import run
from ..errors import OptionError
from ..lowrank.plain import FusedPair

_FARTHEST = 1e4
"""Between the smallest and the largest range that count: what hardly moves stays small."""


@torch.no_grad()
def equalise(model: nn.Module, images: Samples, part: float = 1.0) -> None:
    """Draws the ranges of the channels inside each pair together on these images. In place; the function stays.

    Args:
        model: fused: plain layers, and pairs of them.
        images: (N, ...) like those to come.
        part: of the way to equal ranges, 0..1.

    Raises:
        OptionError: another part.
        ModelError: the model cannot take the images.
    """
    if not 0.0 <= part <= 1.0:
        raise OptionError(f"equalise {part:g} is not in 0..1; give True for equal ranges, or a part such as 0.5")
    pairs = [module for module in model.modules() if isinstance(module, FusedPair)]
    ranges: dict[FusedPair, Tensor] = {}

    def look(pair: FusedPair) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            axis = pair.shape.channel_axis(output.dim())
            found = output.float().abs().movedim(axis, 0).flatten(1).amax(1)
            ranges[pair] = torch.maximum(found, ranges[pair]) if pair in ranges else found

        return hook

    handles = [pair[0].register_forward_hook(look(pair)) for pair in pairs]
    try:
        with evaluating(model):
            run(model, images)
    finally:
        for handle in handles:
            handle.remove()
    for pair, found in ranges.items():
        _scale(pair, found, part)


def _scale(pair: FusedPair, ranges: Tensor, part: float) -> None:
    """Draws these ranges (channels,) of what is between two layers a part of the way to their largest."""
    most = ranges.max()
    if not bool(most > 0):
        return
    scale = (most / ranges.clamp_min(most / _FARTHEST)) ** part
    u, v = pair.matrices()
    scale = scale.to(v).reshape(v.shape[:-1])
    pair.set_matrices(u / scale.unsqueeze(-2), scale.unsqueeze(-1) * v)
