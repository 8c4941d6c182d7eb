"""Fits to mirror images: those that somebody asks for, and those of few large images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dprp.converter import Calibration, FixedRank, Inputs, Plan, calibrate, convert, plan_ranks, survey
from dprp.converter.conversion.sequential import _batches, reconstruct
from dprp.converter.conversion.views import gain_by_mirroring


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


@pytest.mark.parametrize("most", [1, 7, 64])
def test_each_image_and_its_mirror_image_are_on_one_side(most: int) -> None:
    images = _images(20)
    batches, parts = _batches(images, most, mirror=True)
    found: dict[bool, list[Tensor]] = {False: [], True: []}
    for batch, part in zip(batches, parts, strict=True):
        assert batch.images <= most
        assert torch.equal(*part.chunk(2))
        found[batch.judges].append(part[: batch.images])
    judging = images[2::3]
    fitted = torch.cat([images[::3], images[1::3]])
    for some, sides in ((judging, found[True]), (fitted, found[False])):
        both = torch.cat([some, some.flip(-1)])
        assert torch.equal(torch.cat(sides).flatten(1).sum(1).sort().values, both.flatten(1).sum(1).sort().values)
        assert len(torch.cat(sides)) == 2 * len(some)


def test_a_fit_to_mirror_images_is_one_to_more_images() -> None:
    dense, images = _network(), _images(60)
    plan, _ = _cut(dense, images)
    mirrored = reconstruct(dense, plan, images, ridge=1e-4, mirror=True)
    groups = [torch.cat([three, three.flip(-1)]) for three in images.split(3)]  # so that both are in one third
    given = reconstruct(dense, plan, torch.cat(groups), ridge=1e-4)
    alone = reconstruct(dense, plan, images, ridge=1e-4)
    for name, layer in mirrored.layers.items():
        theirs, without = given.layers[name].weight, alone.layers[name].weight
        assert (layer.weight - theirs).norm() < 1e-2 * (layer.weight - without).norm()


def test_few_images_hold_better_on_others_with_their_mirror_images() -> None:
    dense = _network()
    plan, calibration = _cut(dense, _images(12))
    others = _images(400, seed=1)

    def error(*, mirror: bool) -> float:
        converted = convert(dense, plan, calibration=calibration, mirror=mirror)
        with torch.no_grad():
            return float((converted(others) - dense(others)).square().mean())

    assert error(mirror=True) < error(mirror=False)


def test_they_are_used_where_images_are_few_and_large() -> None:
    assert gain_by_mirroring(torch.empty(63, 3, 65, 64))
    assert not gain_by_mirroring(torch.empty(64, 3, 65, 64))
    assert not gain_by_mirroring(torch.empty(2, 3, 64, 64))
    assert not gain_by_mirroring(torch.empty(2, 197, 64))
    assert not gain_by_mirroring(Inputs(torch.empty(2, 3, 224, 224)))


@pytest.mark.parametrize(("size", "used"), [(66, True), (12, False)])
def test_convert_does_so_by_itself(size: int, used: bool) -> None:
    dense = _network()
    plan, calibration = _cut(dense, _images(12, size))
    by_itself, asked, without = (
        _weights(convert(dense, plan, calibration=calibration, mirror=mirror)) for mirror in (None, True, False)
    )
    assert torch.equal(by_itself, asked if used else without)
    assert not torch.equal(asked, without)


def test_what_is_no_map_has_no_mirror_image() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 12)).eval()
    rows = torch.randn(40, 12)
    layers = survey(dense, rows[:1])
    plan, calibration = plan_ranks(layers, FixedRank(4)), calibrate(dense, layers, rows)
    asked, usual = (_weights(convert(dense, plan, calibration=calibration, mirror=mirror)) for mirror in (True, None))
    assert torch.equal(asked, usual)
