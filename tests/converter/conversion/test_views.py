"""Views of the images: every one in turn, mirrored, with pieces of others."""

from __future__ import annotations

import torch
from torch import Tensor

from dprp.converter.conversion.views import views


def _images(count: int = 10, height: int = 6, width: int = 8) -> Tensor:
    """Each of one value that no other has, but for its first column."""
    images = torch.arange(1.0, count + 1).reshape(-1, 1, 1, 1).expand(count, 2, height, width).clone()
    images[..., 0] = 0.0
    return images


def _batches(images: Tensor, size: int, steps: int, *, seed: int = 0, mirror: bool, paste: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(views(images, size, steps, generator, mirror=mirror, paste=paste))


def test_every_image_comes_once_before_any_comes_again() -> None:
    images = _images()
    found = _batches(images, 5, 4, mirror=False, paste=False)
    assert [len(batch) for batch in found] == [5] * 4
    for pair in (found[:2], found[2:]):
        assert torch.equal(torch.cat(pair)[:, 0, 0, 1].sort().values, images[:, 0, 0, 1])
    assert not torch.equal(torch.cat(found[:2]), torch.cat(found[2:]))
    assert all(batch.shape == (3, 5) for batch in _batches(torch.randn(9, 5), 3, 3, mirror=True, paste=True))


def test_half_of_them_are_mirrored() -> None:
    found = torch.cat(_batches(_images(50), 50, 20, mirror=True, paste=False))
    mirrored = (found[:, 0, 0, -1] == 0).float()
    assert 0.4 < float(mirrored.mean()) < 0.6
    assert torch.equal(mirrored, (found[:, 0, 0, 0] != 0).float())


def test_rectangles_are_of_one_other_image_and_of_all_sizes() -> None:
    images = torch.randn(10, 3, 6, 8)
    before, areas = images.clone(), []
    for seed in range(200):
        ((plain,), (pasted,)) = (
            _batches(images, 10, 1, seed=seed, mirror=False, paste=paste) for paste in (False, True)
        )
        changed = (pasted != plain).any(1)
        assert torch.equal(pasted, torch.where(changed[:, None], plain.roll(1, 0), plain))
        assert bool((changed == changed[0]).all())
        rows, columns = changed[0].any(1), changed[0].any(0)
        assert torch.equal(changed[0], rows[:, None] & columns)
        areas.append(float(changed[0].float().mean()))
    assert torch.equal(images, before)
    assert min(areas) < 0.05
    assert max(areas) > 0.6
    assert 0.3 < sum(areas) / len(areas) < 0.5


def test_the_same_seed_gives_the_same_views() -> None:
    images = torch.randn(12, 3, 8, 8)
    same, again, other = (_batches(images, 4, 6, seed=seed, mirror=True, paste=True) for seed in (1, 1, 2))
    assert all(torch.equal(one, two) for one, two in zip(same, again, strict=True))
    assert any(not torch.equal(one, two) for one, two in zip(same, other, strict=True))
