"""Views of images: what the dense network gives for a view is what is wanted there, so that no label has to fit it.

Fits see crops of few large images as well. Polishing sees ever new views, in batches.

Sources: crops, Szegedy et al. (2015), as torchvision takes them; rectangles of other images, Yun et al. (2019),
"CutMix".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeGuard

import torch
from torch import Tensor

from ..analysis.inputs import Samples

_FEW = 64
"""Large images below which fits follow those that they see, and gain by more views of them."""

_VIEWS = 3
"""Of each of few images."""

_SMALL = 64 * 64
"""Pixels of an image up to which it is small."""

_CROPS = (0.35, 1.0)
"""Of the area of an image."""


def are_maps(images: Samples) -> TypeGuard[Tensor]:
    """Whether they are (N, channels, height, width)."""
    return isinstance(images, Tensor) and images.dim() == 4


def are_small(images: Samples) -> bool:
    """Whether they are no maps, or have no more than 64 x 64 places."""
    return len(images.shape) != 4 or images.shape[2] * images.shape[3] <= _SMALL


def views_to_fit(images: Samples, wanted: int | None = None) -> int:
    """How many views of each image to fit on.

    Args:
        images: (N, ...).
        wanted: by somebody, >= 1; None for as many as fits are known to gain by: several of few large maps, or one.
    """
    if not are_maps(images) or not images.is_floating_point():
        return 1
    if wanted is not None:
        return wanted
    return 1 if are_small(images) or len(images) >= _FEW else _VIEWS


def several_views(images: Samples, count: int) -> list[Samples]:
    """The images, and so many views less one: a crop of each in its size, mirrored or not; the same each time.

    Args:
        images: (N, ...); maps, for more than one.
        count: of views, >= 1.

    Returns:
        Each view (N, ...), in the memory layout of the images.
    """
    generator = torch.Generator().manual_seed(0)
    crops = (_cropped(images, generator) for _ in range(count - 1) if are_maps(images))
    return [images, *(_mirrored(crop, generator) for crop in crops)]


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


def _cropped(images: Tensor, generator: torch.Generator) -> Tensor:
    """A crop of each, in its size."""
    from torchvision.transforms import v2  # takes a second

    crop = v2.RandomResizedCrop(images.shape[2:], scale=_CROPS, antialias=True)
    cropped = torch.empty_like(images)
    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        for image, place in zip(images, cropped, strict=True):
            place.copy_(crop(image))
    return cropped


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
