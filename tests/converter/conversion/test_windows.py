"""Which windows fits learn from: not every place of wide maps, whose neighbours are much alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dprp.converter import FixedRank, calibrate, convert, plan_ranks, survey
from dprp.converter.conversion import twins
from dprp.converter.conversion.windows import apart
from dprp.converter.lowrank.moments import answer_moments
from dprp.converter.lowrank.shapes import Plain, shape_of

DEPTHWISE = shape_of(nn.Conv2d(32, 32, 3, groups=32))


def test_windows_lie_apart_on_wide_maps_alone() -> None:
    assert apart(DEPTHWISE, (112, 112), 200) == 12
    assert apart(DEPTHWISE, (28, 28), 200) == 3
    assert apart(DEPTHWISE, (14, 14), 200) == 1  # 49 places are too few
    assert apart(DEPTHWISE, (56, 56), 4) == 1  # 9 values need 5,760 windows
    assert apart(shape_of(nn.Conv2d(96, 24, 1)), (56, 56), 200) == 3
    assert apart(shape_of(nn.Conv1d(4, 4, 3, groups=4)), (3000,), 200) == 30


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(8, 8, 3), nn.ConvTranspose2d(8, 8, 2, groups=8), nn.Linear(8, 8)], ids=str
)
def test_all_places_are_taken_where_shifts_serve_them_or_none_are_apart(layer: Plain) -> None:
    assert apart(shape_of(layer), (112, 112), 200) == 1


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2),
        nn.Conv2d(4, 6, 1),
        nn.Conv1d(4, 4, 3, stride=2, groups=4),
    ],
    ids=str,
)
@pytest.mark.parametrize("distance", [2, 3])
@torch.no_grad()
def test_a_sparser_layer_is_the_layer_at_some_places(layer: Plain, distance: int) -> None:
    x = torch.randn(3, 4, *(11, 14)[: len(layer.kernel_size)])
    shape, places = shape_of(layer), len(layer.kernel_size)
    every: Any = (..., *[slice(None, None, distance)] * places)
    found = answer_moments(layer(x)[every], x, shape.sparser(distance)).centred()
    weight = layer.weight.double().reshape(shape.groups, shape.outputs // shape.groups, -1)
    second, cross = (part.reshape(shape.groups, -1, part.shape[-1]) for part in (found.second, found.cross))
    torch.testing.assert_close(cross, weight @ second, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_conversion_loses_next_to_nothing_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Conv2d(6, 24, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=1, groups=24),
        nn.ReLU(),
        nn.Conv2d(24, 12, 1),
    ).eval()
    images, others = torch.randn(2, 60, 6, 30, 30).cumsum(-1) / 3
    layers = survey(dense, images[:1])
    plan, calibration = plan_ranks(layers, FixedRank(3), keep=("2", "4")), calibrate(dense, layers, images)
    distances: list[int] = []

    def told(*of: object) -> int:
        distances.append(apart(*of))  # type: ignore[arg-type]
        return distances[-1]

    def error() -> float:
        return float((convert(dense, plan, calibration=calibration)(others) - dense(others)).norm())

    monkeypatch.setattr(twins, "apart", told)
    some = error()
    assert max(distances) > 1
    monkeypatch.setattr(twins, "apart", lambda *_: 1)
    assert some < 1.02 * error()
    blind = convert(dense, plan, calibration=calibration, refit=False)(others)
    assert some < 0.9 * float((blind - dense(others)).norm())
