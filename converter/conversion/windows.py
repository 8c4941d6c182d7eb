"""Which images moments of whole windows are of: as many as are needed, for products of wide windows take long."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..lowrank.forms import Form, matrix_size
from ..lowrank.moments import pair_moments
from ..lowrank.regression import PartOrNone
from ..lowrank.shapes import LayerShape


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
    """

    images: int
    samples: int


TO_REFIT = Enough(32, 40)


def to_cut(images: int) -> Enough:
    """For the first cut, and sweeps from there, out of so many images."""
    return Enough(max(32, min(128, images // 4)), 160)


def window_moments(
    x: Tensor,
    z: Tensor,
    shape: LayerShape,
    axis: int,
    places: int,
    here: Batch,
    images: int,
    enough: Enough,
) -> PartOrNone:
    """Moments of one batch of as many images as are needed, evenly spread over all batches.

    Args:
        x, z: what the layer reads in either network, images along `axis`.
        shape: of the layer.
        axis: 0 for a convolution.
        places: windows of one block of an image.
        here: the batch.
        images: in all batches.
        enough: how much is needed.
    """
    columns = matrix_size(shape, Form.CHANNEL)[1]
    blocks = x.shape[axis] // here.images
    wanted = max(enough.images, enough.samples * columns // max(1, places))
    every = max(1, images * blocks // wanted)
    if every > 1:
        some = torch.arange(x.shape[axis], device=x.device)[-here.start * blocks % every :: every]
        x, z = x.index_select(axis, some), z.index_select(axis, some)
    count = z.shape[axis]
    if count == 0:
        return None, 0, here.judges
    return pair_moments(x, z, shape, Form.CHANNEL), count, here.judges
