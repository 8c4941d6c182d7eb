"""Views of images: what the dense network gives for a view is what is wanted there, so that no label has to fit it.

Fits see the mirror images of few large ones. Polishing sees ever new views, in batches.

Source: rectangles of other images, Yun et al. (2019), "CutMix".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeGuard

import torch
from torch import Tensor

from ..analysis.inputs import Samples

_FEW = 64
"""Large images below which fits follow those that they see, and gain by their mirror images."""

_SMALL = 64 * 64
"""Pixels of an image up to which it is small."""


def are_maps(images: Samples) -> TypeGuard[Tensor]:
    """Whether they are (N, channels, height, width)."""
    return isinstance(images, Tensor) and images.dim() == 4


def are_small(images: Samples) -> bool:
    """Whether they are no maps, or have no more than 64 x 64 places."""
    return len(images.shape) != 4 or images.shape[2] * images.shape[3] <= _SMALL


def gain_by_mirroring(images: Samples) -> bool:
    """Whether fits to their mirror images as well are known to hold better on others: few large maps."""
    return are_maps(images) and not are_small(images) and len(images) < _FEW


def both_ways(images: Samples) -> Tensor:
    """Maps (N, channels, height, width), and behind them their mirror images: (2N, ...)."""
    assert are_maps(images)
    return torch.cat([images, images.flip(-1)])


def views(
    images: Samples, size: int, steps: int, generator: torch.Generator, *, mirror: bool, paste: bool
) -> Iterator[Samples]:
    """Batches, each image once before any comes again.

    Args:
        images: (N, ...).
        size: of a batch.
        steps: how many batches.
        generator: of chance, on the CPU.
        mirror: mirror half of the images, where they are maps.
        paste: paste a rectangle of another image into each, where they are maps.
    """
    order = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(len(images), generator=generator)
        batch = images[order[:size].to(images.device)]
        order = order[size:]
        if are_maps(batch):
            batch = _mirrored(batch, generator) if mirror else batch
            batch = _pasted(batch, generator) if paste else batch
        yield batch


def _mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the images, by chance."""
    flip = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
    return torch.where(flip[:, None, None, None], images.flip(-1), images)


def _pasted(images: Tensor, generator: torch.Generator) -> Tensor:
    """With a rectangle of another image, in the same place of all; its part of the area is uniform."""
    side = float(torch.rand((), generator=generator)) ** 0.5
    rows, columns = (_stretch(size, side, generator) for size in images.shape[2:])
    pasted = images.clone()
    pasted[:, :, rows, columns] = images.roll(1, 0)[:, :, rows, columns]
    return pasted


def _stretch(size: int, part: float, generator: torch.Generator) -> slice:
    """A part of an axis, anywhere."""
    length = int(part * size)
    start = int(torch.randint(size - length + 1, (), generator=generator))
    return slice(start, start + length)
