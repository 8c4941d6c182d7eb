"""Sums of products over the windows of a map, by shifts of it against itself.

Two values of a window lie a fixed shift apart. Of a kernel of 3 x 3 there are 81 pairs of taps and only 25 shifts
between them, or 13 but for the sign: each needs one product of the map with itself. Where both taps move on by one,
the places that they cover lose one line of the map and gain another, so that pairs with the same shift cost little
more than the first. The sums are exact, borders included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Axis(NamedTuple):
    """A kernel axis: how many taps, and how far apart."""

    taps: int
    dilation: int


Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""Two taps of a kernel, each by its place on every axis."""


def window_products(p: Tensor, q: Tensor, axes: Sequence[Axis]) -> Tensor:
    """The sum over all windows, which lie side by side without a stride, of one map's times another's.

    Args:
        p, q: (N, channels, ...) maps with the padding in them; the same tensor when there is one map.
        axes: of the kernel.

    Returns:
        (channels of p, taps..., channels of q, taps...) float64; products are taken in the type of the maps.
    """
    same, kernel = p is q, [axis.taps for axis in axes]
    p = p.movedim((0, 1), (-2, -1)).contiguous()
    q = p if same else q.movedim((0, 1), (-2, -1)).contiguous()
    found = p.new_empty(*kernel, *kernel, p.shape[-1], q.shape[-1], dtype=torch.float64)
    for (one, other), total in _sums(p, q, axes, 0, same).items():
        found[one + other] = total
        if same:
            found[other + one] = total.mT
    there = range(len(kernel))
    return found.permute(found.dim() - 2, *there, found.dim() - 1, *(len(kernel) + axis for axis in there))


def _sums(p: Tensor, q: Tensor, axes: Sequence[Axis], at: int, same: bool) -> dict[Pair, Tensor]:
    """For pairs of taps of the axes from one on, (channels of p, channels of q) float64.

    Args:
        p, q: (axes..., N, channels).
        axes: of the kernel.
        at: the axis.
        same: whether the maps are the same, so that one of two mirrored pairs is enough.
    """
    if at == len(axes):
        return {((), ()): (p.reshape(-1, p.shape[-1]).mT @ q.reshape(-1, q.shape[-1])).double()}
    taps, dilation = axes[at]
    windows = p.shape[at] - dilation * (taps - 1)
    found: dict[Pair, Tensor] = {}
    for gap in range(0 if same else 1 - taps, taps):

        def lines(start: int, count: int, gap: int = gap) -> dict[Pair, Tensor]:
            moved = q.narrow(at, start + gap * dilation, count)
            return _sums(p.narrow(at, start, count), moved, axes, at + 1, same and gap == 0)

        first, last = max(0, -gap), taps - max(0, gap)
        covered = lines(first * dilation, windows)
        for tap in range(first, last):
            found |= {((tap, *one), (tap + gap, *other)): total for (one, other), total in covered.items()}
            if tap + 1 < last:
                lost, gained = lines(tap * dilation, dilation), lines(tap * dilation + windows, dilation)
                covered = {pair: total - lost[pair] + gained[pair] for pair, total in covered.items()}
    return found
