"""Which images moments of whole windows are of: as many as are needed, for products of wide windows take long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..lowrank.shapes import LayerShape

_PLACES, _SAMPLES = 100, 640
"""Of an image, and for each value of a window: so many at least where not all places of a map are looked at."""


class Batch(NamedTuple):
    """Some of the images.

    Attributes:
        start, images: the first of them, and how many they are; each is there twice, in the second half again.
        judges: whether they judge fits instead of being fitted on.
    """

    start: int
    images: int
    judges: bool


class Enough(NamedTuple):
    """What moments of whole windows are of, at least, where there is so much.

    Attributes:
        images: how many.
        samples: for each value of a window.
        macs: to spend on their products; images differ, and windows of a few values cost next to nothing.
    """

    images: int
    samples: int
    macs: int = 4 * 10**9

    def wanted(self, columns: int, places: int, groups: int) -> int:
        """Images of windows of so many values each, in so many places of an image."""
        costs = max(1, groups * places * columns**2)
        return max(self.images, self.samples * columns // max(1, places), self.macs // costs)


TO_REFIT = Enough(64, 80)


def to_cut(images: int) -> Enough:
    """For the first cut, and sweeps from there, out of so many images."""
    return Enough(max(32, min(128, images // 4)), 160)


def apart(shape: LayerShape, sizes: Sequence[int], images: int) -> int:
    """How far apart windows may lie: neighbours are much alike, and wide maps have far more than a fit needs.

    Args:
        shape: of a layer; convolutions whose windows hold all channels take all places, mostly by shifts.
        sizes: of the map that it gives.
        images: of which windows are taken.

    Returns:
        Every so many places along each axis; 1 for all.
    """
    if shape.linear or shape.transposed or (shape.groups == 1 and math.prod(shape.kernel) > 1):
        return 1
    columns = math.prod(shape.weight[1:])

    def enough(distance: int) -> bool:
        places = math.prod(-(-size // distance) for size in sizes)
        return places >= _PLACES and places * images >= _SAMPLES * columns

    distance = 1
    while enough(distance + 1):
        distance += 1
    return distance


def thinned(parts: Sequence[Tensor], axis: int, here: Batch, images: int, wanted: int) -> Sequence[Tensor]:
    """Some of a batch's blocks, evenly spread, so many that of all batches enough are taken.

    Args:
        parts: tensors with images along `axis`, as many blocks in each.
        axis: 0 for a convolution.
        here: the batch.
        images: in all batches that the layer learns from.
        wanted: blocks of these batches; where they have less, all are taken.
    """
    blocks = parts[0].shape[axis] // here.images
    every = max(1, images * blocks // wanted)
    some: Any = (*[slice(None)] * axis, slice(-here.start * blocks % every, None, every))
    return parts if every == 1 else [part[some] for part in parts]
