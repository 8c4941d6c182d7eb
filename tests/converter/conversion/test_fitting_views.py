"""Fits to several views of each image: those that somebody asks for, and those of few large images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dprp.converter import Calibration, FixedRank, Inputs, ModelError, Plan, calibrate, convert, plan_ranks, survey
from dprp.converter.conversion.sequential import _batches, reconstruct
from dprp.converter.conversion.views import several_views, views_to_fit


def _images(count: int, size: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(count, 6, size, size, generator=torch.Generator().manual_seed(seed)).cumsum(-2) / 3


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 5))
    return nn.Sequential(nn.Conv2d(6, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), *head).eval()


def _cut(model: nn.Module, images: Tensor) -> tuple[Plan, Calibration]:
    layers = survey(model, images[:1])
    return plan_ranks(layers, FixedRank(4)), calibrate(model, layers, images)


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def _slopes(images: Tensor) -> tuple[Tensor, Tensor]:
    """How much brighter an image gets from row to row and from column to column; the same everywhere."""
    middle = images[:, 0, 20:-20, 20:-20]
    down, right = middle.diff(dim=1), middle.diff(dim=2)
    assert (down - down.mean((1, 2), keepdim=True)).abs().max() < 1e-2 * down.abs().max()
    return down.mean((1, 2)), right.mean((1, 2))


def test_views_are_the_images_and_crops_of_them_in_their_size() -> None:
    rows, columns = torch.meshgrid(torch.arange(80.0), torch.arange(100.0), indexing="ij")
    images = (rows + 2 * columns).expand(200, 2, 80, 100)
    first, *others = several_views(images, 3)
    assert torch.equal(first, images)
    assert [view.shape for view in others] == [images.shape] * 2
    for view in others:
        assert isinstance(view, Tensor)
        down, right = _slopes(view)
        areas = down * right.abs() / 2  # a crop is stretched to the image's size: by so much its slopes are less
        assert float(areas.min()) < 0.42
        assert float(areas.max()) > 0.93
        assert bool(((areas > 0.33) & (areas < 1.01)).all())
        assert 0.3 < float((right < 0).float().mean()) < 0.7
    assert not torch.equal(*others)


def test_they_are_the_same_each_time_and_lie_as_the_images_do() -> None:
    images = _images(5).to(memory_format=torch.channels_last)
    state = torch.get_rng_state()
    once, again = several_views(images, 2), several_views(images, 2)
    assert torch.equal(state, torch.get_rng_state())
    for one, other in zip(once, again, strict=True):
        assert isinstance(one, Tensor)
        assert torch.equal(one, other)
        assert one.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("most", [1, 7, 64])
def test_all_views_of_an_image_are_on_one_side(most: int) -> None:
    images = torch.arange(20.0).reshape(20, 1, 1, 1).expand(20, 3, 8, 8)  # crops of which are what they are
    batches, parts = _batches(several_views(images, 3), most)
    found: dict[bool, list[Tensor]] = {False: [], True: []}
    for batch, part in zip(batches, parts, strict=True):
        assert batch.images <= most
        assert torch.equal(*part.chunk(2))
        found[batch.judges].append(part[: batch.images, 0, 0, 0])
    judging = [float(place) for place in range(20) if place % 3 == 2]
    fitted = [float(place) for place in range(20) if place % 3 != 2]
    for wanted, sides in ((judging, found[True]), (fitted, found[False])):
        assert sorted(torch.cat(sides).round(decimals=3).tolist()) == sorted(3 * wanted)


def test_a_fit_to_views_is_one_to_more_images() -> None:
    dense, images = _network(), _images(60)
    plan, _ = _cut(dense, images)
    viewed = reconstruct(dense, plan, images, ridge=1e-4, views=2)
    pair = several_views(images, 2)
    groups = [view[start : start + 3] for start in range(0, 60, 3) for view in pair]  # so that both are in one third
    given = reconstruct(dense, plan, torch.cat(groups), ridge=1e-4)  # type: ignore[arg-type]
    alone = reconstruct(dense, plan, images, ridge=1e-4)
    for name, layer in viewed.layers.items():
        theirs, without = given.layers[name].weight, alone.layers[name].weight
        assert (layer.weight - theirs).norm() < 1e-2 * (layer.weight - without).norm()


def test_few_images_hold_better_on_others_with_more_views() -> None:
    dense = _network()
    plan, calibration = _cut(dense, _images(12))
    others = _images(400, seed=1)

    def error(views: int) -> float:
        converted = convert(dense, plan, calibration=calibration, views=views)
        with torch.no_grad():
            return float((converted(others) - dense(others)).square().mean())

    assert error(3) < error(1)


def test_several_are_used_where_images_are_few_and_large() -> None:
    assert views_to_fit(torch.empty(63, 3, 65, 64)) == 3
    assert views_to_fit(torch.empty(64, 3, 65, 64)) == 1
    assert views_to_fit(torch.empty(2, 3, 64, 64)) == 1
    assert views_to_fit(torch.empty(64, 3, 64, 64), 2) == 2


@pytest.mark.parametrize(
    "images",
    [
        torch.empty(2, 197, 64),
        torch.empty(2, 3, 224, 224, dtype=torch.long),
        Inputs(torch.empty(2, 3, 224, 224)),
    ],
)
def test_what_is_no_picture_is_seen_as_it_is(images: Tensor | Inputs) -> None:
    assert views_to_fit(images) == views_to_fit(images, 4) == 1


@pytest.mark.parametrize(("size", "used"), [(66, 3), (12, 1)])
def test_convert_does_so_by_itself(size: int, used: int) -> None:
    dense = _network()
    plan, calibration = _cut(dense, _images(12, size))
    by_itself, asked, other = (
        _weights(convert(dense, plan, calibration=calibration, views=views)) for views in (None, used, 2)
    )
    assert torch.equal(by_itself, asked)
    assert not torch.equal(asked, other)


def test_there_is_one_at_least() -> None:
    dense = _network()
    plan, calibration = _cut(dense, _images(12))
    with pytest.raises(
        ModelError, match="views 0 is below 1; give 1 for the images alone, or more for crops of them"
    ):
        convert(dense, plan, calibration=calibration, views=0)
