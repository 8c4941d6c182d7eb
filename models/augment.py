"""Augmentation of a whole batch at once; randomness comes from torch's global generator."""

from enum import Enum

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from .errors import DataError

_RAND = v2.RandAugment()


class Augment(str, Enum):
    """What happens to a training image before normalisation."""

    NONE = "none"
    CROP = "crop"
    CROP_FLIP = "crop-flip"
    RAND = "rand"  # crop-flip, and then two operations of RandAugment (Cubuk et al. 2019)


def augment_batch(images: Tensor, augment: Augment) -> Tensor:
    """Randomly shift, mirror and change each image of a batch.

    An image is padded with black by an eighth of its size on each side, and a crop of its own size is taken.

    Args:
        images: (n, channels, height, width), any dtype, for RAND uint8 of 1 or 3 channels; left as it is.
        augment: NONE returns the images themselves.

    Returns:
        (n, channels, height, width), same dtype.

    Raises:
        DataError: RAND for another number of channels.
    """
    if augment is Augment.NONE:
        return images
    count, channels, height, width = images.shape
    if augment is Augment.RAND and channels not in (1, 3):
        raise DataError(f"augmentation rand is for images of 1 or 3 channels, these have {channels}; take crop-flip.")
    pad_y, pad_x = height // 8, width // 8
    top = torch.randint(2 * pad_y + 1, (count,))
    left = torch.randint(2 * pad_x + 1, (count,))
    flip = torch.zeros(count, dtype=torch.bool) if augment is Augment.CROP else torch.rand(count) < 0.5
    moved = shift_and_flip(images, top, left, flip, pad_y, pad_x)
    return torch.stack([_RAND(image) for image in moved]) if augment is Augment.RAND else moved


def shift_and_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, pad_y: int, pad_x: int) -> Tensor:
    """Crop each image at its own corner of the padded batch, then mirror the marked ones left to right.

    Args:
        images: (n, channels, height, width).
        top: (n,) integers, 0..2 * pad_y, the crop's upper row in the padded image.
        left: (n,) integers, 0..2 * pad_x, the crop's left column.
        flip: (n,) booleans.
        pad_y: black rows added above and below.
        pad_x: black columns added left and right.

    Returns:
        (n, channels, height, width).
    """
    count, channels, height, width = images.shape
    padded = F.pad(images, (pad_x, pad_x, pad_y, pad_y))
    columns = torch.arange(width)
    columns = torch.where(flip[:, None], columns.flip(0), columns) + left[:, None]
    rows = torch.arange(height) + top[:, None]
    pixels = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    # gather is several times faster here than indexing with three index tensors.
    index = pixels.view(count, 1, -1).expand(-1, channels, -1)
    return padded.view(count, channels, -1).gather(2, index).view(images.shape)
