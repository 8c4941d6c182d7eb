"""The images that a network is polished on, in batches of ever new views of them.

What the dense network gives for a view is what is wanted there, so that no label has to fit it.

Source: rectangles of other images, Yun et al. (2019), "CutMix".
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..analysis.inputs import Samples


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
        if isinstance(batch, Tensor) and batch.dim() == 4:
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
