"""Layers that stay dense make up for the errors of those before them, and nothing else happens to them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

from dprp.converter import Calibration, FixedRank, Plan, calibrate, convert, plan_ranks, survey
from dprp.converter.conversion import sequential, twins, walking
from dprp.converter.conversion.windows import Enough


def _images(seed: int, count: int = 90) -> Tensor:
    return torch.randn(count, 6, 12, 12, generator=torch.Generator().manual_seed(seed)).cumsum(-1) / 3


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    convolution = (nn.Conv2d(6, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False))
    norm = (nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(*convolution, *norm, nn.Linear(96, 5)).eval()


def _cut(model: nn.Module, *, keep: tuple[str, ...]) -> tuple[Plan, Calibration]:
    layers = survey(model, _images(0)[:1])
    return plan_ranks(layers, FixedRank(3), keep=keep), calibrate(model, layers, _images(0))


def _error(model: nn.Module, dense: nn.Module) -> float:
    with torch.no_grad():
        return float((model(_images(1)) - dense(_images(1))).square().mean())


def test_they_bring_the_answers_nearer_on_other_images() -> None:
    dense = _network()
    plan, calibration = _cut(dense, keep=("2", "5", "9"))
    assert list(plan.factored) == ["0"]
    alone = convert(dense, plan, calibration=calibration, refit=False)
    together = convert(dense, plan, calibration=calibration)
    assert _error(together, dense) < 0.8 * _error(alone, dense)
    for name in ("2", "5"):
        assert torch.equal(alone.get_submodule(name).weight, dense.get_submodule(name).weight)
        assert not torch.equal(together.get_submodule(name).weight, dense.get_submodule(name).weight)


def test_layers_before_the_first_cut_stay_as_they_are() -> None:
    dense = _network()
    plan, calibration = _cut(dense, keep=("0", "2", "9"))
    converted = convert(dense, plan, calibration=calibration)
    for name in ("0", "2"):
        for mine, theirs in zip(
            converted.get_submodule(name).parameters(), dense.get_submodule(name).parameters(), strict=True
        ):
            assert torch.equal(mine, theirs)


class Shares(nn.Module):
    """Calls one layer twice, ties two others, and has a hook on a fourth."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(6, 16, 3, padding=1)
        self.twice = nn.Conv2d(16, 16, 1)
        self.tied, self.other = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.other.weight = self.tied.weight
        self.hooked = nn.Conv2d(16, 16, 1)
        self.hooked.register_forward_hook(lambda _module, _inputs, output: output * 1.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.first(x).relu()).relu()).relu()
        return self.hooked(self.other(self.tied(x).relu()).relu()).mean((2, 3))  # type: ignore[no-any-return]


def test_layers_that_are_more_than_they_seem_are_left_alone() -> None:
    torch.manual_seed(0)
    dense = Shares().eval()
    plan, calibration = _cut(dense, keep=("twice",))
    assert list(plan.factored) == ["first"]
    converted = convert(dense, plan, calibration=calibration)
    for name in ("twice", "tied", "other", "hooked"):
        assert torch.equal(converted.get_submodule(name).weight, dense.get_submodule(name).weight)


def test_a_conversion_that_fails_gives_the_weights_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from dprp.converter.conversion import converting

    def fails(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(converting, "reestimate", fails)
    dense = _network()
    before = copy.deepcopy(dense.state_dict())
    plan, calibration = _cut(dense, keep=("2", "5", "9"))
    with pytest.raises(KeyboardInterrupt):
        convert(dense, plan, calibration=calibration, inplace=True)
    assert before.keys() == dense.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in dense.state_dict().items())


@pytest.mark.parametrize("many", [1, 3, 17])
def test_batches_in_step_learn_what_one_batch_would(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = _network()
    plan, calibration = _cut(dense, keep=("2", "9"))
    assert sorted(plan.factored) == ["0", "5"]
    monkeypatch.setattr(twins, "TO_REFIT", Enough(9, 40))  # so that some of the batches have none of these
    once = convert(dense, plan, calibration=calibration)
    monkeypatch.setattr(sequential, "images_at_once", lambda _shapes: many)
    told: list[str] = []
    apart = convert(dense, plan, calibration=calibration, on_layer=told.append)
    assert told == ["0", "5"]
    with torch.no_grad():
        mine, theirs, exact = (model(_images(1)) for model in (apart, once, dense))
    assert (mine - theirs).norm() < 1e-3 * (theirs - exact).norm()


def test_layers_learn_from_as_many_images_as_may_wait_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = _network()
    plan, calibration = _cut(dense, keep=("2", "9"))
    monkeypatch.setattr(sequential, "images_at_once", lambda _shapes: 4)
    once = convert(dense, plan, calibration=calibration)
    seen: list[tuple[int, int, bool]] = []
    moments = twins.Twin._moments

    def looked(self: twins.Twin, *of: Any, **how: Any) -> Any:
        seen.append((self._shape.inputs, self._walk.here.start, self._walk.here.judges))
        return moments(self, *of, **how)

    monkeypatch.setattr(twins.Twin, "_moments", looked)
    monkeypatch.setattr(walking, "images_waiting", lambda shape: 12 if shape.inputs == 6 else 1000)
    few = convert(dense, plan, calibration=calibration)
    assert {at[1:] for at in seen if at[0] == 6} == {(0, False), (4, False), (60, True)}
    assert {at[1:] for at in seen if at[0] != 6} == {
        *((start, False) for start in range(0, 60, 4)),
        *((start, True) for start in range(60, 90, 4)),
    }
    with torch.no_grad():
        mine, theirs, exact = (model(_images(1)) for model in (few, once, dense))
    assert (mine - exact).norm() < 1.2 * (theirs - exact).norm()


def test_attention_learns_from_batches_in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    dense = VisionTransformer(16, 4, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5).eval()
    nn.init.normal_(dense.heads.head.weight)
    images = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(0)).cumsum(-1) / 3
    layers = survey(dense, images[:1])
    plan, calibration = plan_ranks(layers, FixedRank(4)), calibrate(dense, layers, images)
    once = convert(dense, plan, calibration=calibration)
    monkeypatch.setattr(sequential, "images_at_once", lambda _shapes: 7)
    apart = convert(dense, plan, calibration=calibration)
    with torch.no_grad():
        mine, theirs, exact = (model(images) for model in (apart, once, dense))
    assert (mine - theirs).norm() < 1e-3 * (theirs - exact).norm()


class _Forks(nn.Module):
    """Bright images take another way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.dark, self.bright = nn.Linear(12, 12), nn.Linear(12, 8), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        between = self.first(x)
        way = self.bright if bool(x.sum() > 0) else self.dark
        both: Tensor = way(between) + self.dark(between)
        return both


def test_where_batches_take_different_ways_one_takes_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    dense = _Forks().eval()
    images = torch.cat([torch.randn(30, 12) + 1, torch.randn(20, 12) - 1])
    plan = plan_ranks(survey(dense, images), FixedRank(3))
    assert sorted(plan.factored) == ["bright", "dark", "first"]
    monkeypatch.setattr(sequential, "images_at_once", lambda _shapes: 5)
    converted = convert(dense, plan, calibration=calibrate(dense, survey(dense, images), images))
    with torch.no_grad():
        assert (converted(images) - dense(images)).norm() < 0.8 * dense(images).norm()
