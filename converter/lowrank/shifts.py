"""Sums of products over the windows of a map, by shifts of it against itself.

Two values of a window lie a fixed shift apart. Of a kernel of 3 x 3 there are 81 pairs of taps and only 25 shifts
between them, or 13 but for the sign: each needs one product of the map with itself. Where both taps move on by one,
the places that they cover lose one line of the map and gain another, so that pairs with the same shift cost little
more than the first. The sums are exact, borders included.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

K = TypeVar("K")


class Axis(NamedTuple):
    """A kernel axis: how many taps, and how far apart."""

    taps: int
    dilation: int


Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""Two taps of a kernel, each by its place on every axis."""

Product = Callable[[Tensor, Tensor], Tensor]
"""The sum over places of one map's channels times another's, both (..., channels): float64, a tensor of its own."""


def across_channels(p: Tensor, q: Tensor) -> Tensor:
    """(channels of p, channels of q), of each with each."""
    return (p.reshape(-1, p.shape[-1]).mT @ q.reshape(-1, q.shape[-1])).double()


def by_channel(p: Tensor, q: Tensor) -> Tensor:
    """(channels,), of each with its own."""
    return (p * q).flatten(0, -2).sum(0).double()


class WindowProducts:
    """The sum over all windows, which lie side by side without a stride, of one map's times another's.

    Args:
        axes: of the kernel.
        same: whether both maps are always the same one, so that of two mirrored pairs one is enough.
        product: of channels.
    """

    def __init__(self, axes: Sequence[Axis], same: bool, product: Product = across_channels) -> None:
        self._axes, self._same, self._product = axes, same, product
        self._sums: dict[Pair, Tensor] = {}

    def add(self, p: Tensor, q: Tensor) -> None:
        """Adds those of some images; products are taken in the type of the maps, and sums of them in float64.

        Args:
            p, q: (N, channels, ...) maps with the padding in them.
        """
        p = _laid_out(p)
        q = p if self._same else _laid_out(q)
        for pair, total in _sums(p, q, self._axes, 0, self._same, self._product):
            _add(self._sums, pair, total)

    def take(self) -> Tensor:
        """(channels of p, taps..., channels of q, taps...) float64, or (channels, taps..., taps...) by channel.

        Nothing is left of it here.
        """
        kernel = [axis.taps for axis in self._axes]
        some = next(iter(self._sums.values()))
        found = some.new_empty(some.shape[0], *kernel, *some.shape[1:], *kernel)
        between = [slice(None)] * (some.dim() - 1)
        while self._sums:
            (one, other), total = self._sums.popitem()
            there: Any = (slice(None), *one, *between, *other)
            found[there] = total
            if self._same:
                mirrored: Any = (slice(None), *other, *between, *one)
                found[mirrored] = total.mT if between else total
        return found


class TapProducts:
    """The sum over all windows of the values of one map at their places times those of the window in another one.

    Args:
        axes: of the kernel.
        product: of channels.
    """

    def __init__(self, axes: Sequence[Axis], product: Product = across_channels) -> None:
        self._axes, self._product = axes, product
        self._sums: dict[tuple[int, ...], Tensor] = {}

    def add(self, p: Tensor, q: Tensor) -> None:
        """Adds those of some images.

        Args:
            p: (N, channels, places...).
            q: (N, channels, ...) with the padding in it.
        """
        p, q = _laid_out(p), _laid_out(q)
        for tap in itertools.product(*(range(axis.taps) for axis in self._axes)):
            seen = q
            for at, (place, axis) in enumerate(zip(tap, self._axes, strict=True)):
                seen = seen.narrow(at, place * axis.dilation, p.shape[at])
            _add(self._sums, tap, self._product(p, seen))

    def take(self) -> Tensor:
        """(channels of p, channels of q, taps...) float64, or (channels, taps...) by channel."""
        found = torch.stack(list(self._sums.values()), -1)
        return found.reshape(*found.shape[:-1], *(axis.taps for axis in self._axes))


def _sums(
    p: Tensor, q: Tensor, axes: Sequence[Axis], at: int, same: bool, product: Product
) -> Iterator[tuple[Pair, Tensor]]:
    """For pairs of taps of the axes from one on, what `product` makes of all windows, each a tensor of its own.

    Args:
        p, q: (axes..., N, channels).
        axes: of the kernel.
        at: the axis.
        same: whether the maps are the same, so that one of two mirrored pairs is enough.
        product: of channels.
    """
    if at == len(axes):
        yield ((), ()), product(p, q)
        return
    taps, dilation = axes[at]
    windows = p.shape[at] - dilation * (taps - 1)
    for gap in range(0 if same else 1 - taps, taps):

        def lines(start: int, count: int, gap: int = gap) -> dict[Pair, Tensor]:
            moved = q.narrow(at, start + gap * dilation, count)
            return dict(_sums(p.narrow(at, start, count), moved, axes, at + 1, same and gap == 0, product))

        first, last = max(0, -gap), taps - max(0, gap)
        covered = lines(first * dilation, windows)
        for tap in range(first, last):
            for (one, other), total in covered.items():
                yield ((tap, *one), (tap + gap, *other)), total
            if tap + 1 < last:
                lost, gained = lines(tap * dilation, dilation), lines(tap * dilation + windows, dilation)
                covered = {pair: total - lost[pair] + gained[pair] for pair, total in covered.items()}


def _add(sums: dict[K, Tensor], key: K, more: Tensor) -> None:
    """To what is there, in place; it becomes that where there is nothing."""
    there = sums.setdefault(key, more)
    if there is not more:
        there.add_(more)


def _laid_out(maps: Tensor) -> Tensor:
    """(N, channels, ...) as (..., N, channels)."""
    return maps.movedim((0, 1), (-2, -1)).contiguous()
