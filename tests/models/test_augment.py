import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from dprp.models import Augment, DataError
from dprp.models.augment import augment_batch, shift_and_flip


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 5),
    channels=st.integers(1, 3),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    pads=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    seed=st.integers(0, 2**20),
)
def test_batch_equals_image_by_image(
    count: int, channels: int, height: int, width: int, pads: tuple[int, int], seed: int
) -> None:
    pad_y, pad_x = pads
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, channels, height, width), dtype=torch.uint8, generator=draw)
    top = torch.randint(2 * pad_y + 1, (count,), generator=draw)
    left = torch.randint(2 * pad_x + 1, (count,), generator=draw)
    flip = torch.rand(count, generator=draw) < 0.5
    naive = []
    for image, y, x, mirror in zip(images, top.tolist(), left.tolist(), flip.tolist(), strict=True):
        crop = F.pad(image, (pad_x, pad_x, pad_y, pad_y))[:, y : y + height, x : x + width]
        naive.append(crop.flip(2) if mirror else crop)
    assert torch.equal(shift_and_flip(images, top, left, flip, pad_y, pad_x), torch.stack(naive))


@pytest.mark.parametrize("augment", list(Augment))
@pytest.mark.parametrize("shape", [(6, 1, 8, 8), (6, 3, 32, 24), (6, 2, 5, 5)])
def test_shape_type_and_seed(augment: Augment, shape: tuple[int, ...]) -> None:
    images = torch.randint(256, shape, dtype=torch.uint8)
    before = images.clone()
    if augment is Augment.RAND and shape[1] == 2:
        with pytest.raises(DataError, match="rand is for images of 1 or 3 channels, these have 2"):
            augment_batch(images, augment)
        return
    torch.manual_seed(3)
    first = augment_batch(images, augment)
    torch.manual_seed(3)
    assert torch.equal(augment_batch(images, augment), first)
    assert first.shape == images.shape
    assert first.dtype == images.dtype
    assert torch.equal(images, before)


def test_none_changes_nothing_and_draws_nothing() -> None:
    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    state = torch.get_rng_state()
    assert torch.equal(augment_batch(images, Augment.NONE), images)
    assert torch.equal(torch.get_rng_state(), state)


def test_crop_never_mirrors_and_crop_flip_mirrors_about_half() -> None:
    # Below 8 pixels there is no padding, so only mirroring can change an image.
    images = torch.arange(4, dtype=torch.uint8).expand(1000, 1, 4, 4)
    torch.manual_seed(0)
    assert torch.equal(augment_batch(images, Augment.CROP), images)
    mirrored = (augment_batch(images, Augment.CROP_FLIP) != images).flatten(1).any(1)
    assert 400 < mirrored.sum() < 600


def test_crop_shifts_by_up_to_an_eighth_both_ways() -> None:
    images = torch.zeros(2000, 1, 16, 16, dtype=torch.uint8)
    images[:, :, 8, 8] = 1
    torch.manual_seed(0)
    where = augment_batch(images, Augment.CROP).nonzero()
    assert len(where) == 2000
    assert set(where[:, 2].tolist()) == set(where[:, 3].tolist()) == {6, 7, 8, 9, 10}
