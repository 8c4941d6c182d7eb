"""Of several plans, the network decides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dprp.converter import (
    BLENDS,
    Calibration,
    FixedRank,
    MacBudget,
    Plan,
    Sensitivity,
    Unit,
    calibrate,
    choose_plan,
    convert,
    foretell,
    plan_ranks,
    survey,
)
from dprp.converter.analysis.divergence import answers
from dprp.converter.conversion import choosing as choosing_module
from dprp.converter.conversion.choosing import _softening, usual_trials


def _images() -> Tensor:
    return torch.randn(60, 3, 16, 16)


def test_the_plan_that_answers_most_like_the_dense_network_wins(residual: nn.Module) -> None:
    layers = survey(residual, _images()[:1])
    calibration = calibrate(residual, layers, _images())
    harsh = plan_ranks(layers, FixedRank(1))
    gentle = plan_ranks(layers, FixedRank(12), keep=["stem", "twice", "head"])
    before = {name: value.clone() for name, value in residual.state_dict().items()}
    assert choose_plan(residual, [harsh, gentle], calibration) == 1
    assert choose_plan(residual, [gentle, harsh, gentle], calibration) == 0
    assert all(torch.equal(before[name], value) for name, value in residual.state_dict().items())


def test_equal_plans_cost_no_trial(residual: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = survey(residual, _images()[:1])
    calibration = calibrate(residual, layers, _images())
    plan = plan_ranks(layers, FixedRank(4))
    seen = []
    monkeypatch.setattr(choosing_module, "convert", lambda *a, **k: seen.append(a) or convert(*a, **k))  # type: ignore
    assert choose_plan(residual, [plan, plan], calibration) == 0
    assert (
        choose_plan(residual, [plan, plan_ranks(layers, FixedRank(3))], calibrate(residual, layers, _images()[:1]))
        == 0
    )
    assert not seen


@pytest.mark.parametrize(("count", "most"), [(60, 512), (9, 512), (60, 20)])
def test_all_images_that_a_trial_is_not_fitted_on_judge_it(
    count: int, most: int, residual: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randn(count, 3, 16, 16)
    layers = survey(residual, images[:1])
    plans = [plan_ranks(layers, FixedRank(rank)) for rank in (2, 6)]
    monkeypatch.setattr(choosing_module, "_FEWEST_FITTED", 20)
    monkeypatch.setattr(choosing_module, "_MOST_FITTED", most)
    fitted: list[Tensor] = []
    judges: list[Tensor] = []

    def made(model: nn.Module, plan: Plan, *, calibration: Calibration, views: int) -> nn.Module:
        assert isinstance(calibration.images, Tensor)
        fitted.append(calibration.images)
        return convert(model, plan, calibration=calibration, views=views)

    def asked(model: nn.Module, some: Tensor, *, temperature: float = 1.0) -> list[Tensor]:
        judges.append(some)
        return answers(model, some, temperature=temperature)

    monkeypatch.setattr(choosing_module, "convert", made)
    monkeypatch.setattr(choosing_module, "answers", asked)
    choose_plan(residual, plans, calibrate(residual, layers, images, images=count))
    for some, others in zip(fitted, judges[1:], strict=True):
        assert len(some) == min(most, count - -(-count // 3))
        together = torch.cat([some, others])
        assert len(together) == count
        assert len(torch.unique(together.flatten(1), dim=0)) == count


def test_blends_go_from_errors_to_nats(residual: nn.Module) -> None:
    layers = survey(residual, _images()[:1])
    losses = foretell(residual, layers, calibrate(residual, layers, _images()))
    for key in losses.errors:
        torch.testing.assert_close(losses.blend(0.0)[key], losses.errors[key])
        torch.testing.assert_close(losses.blend(1.0)[key], losses.nats[key])
        torch.testing.assert_close(losses.blend(0.5)[key], losses.distortions(Sensitivity.MIXED)[key])
    for weight, candidate in zip(BLENDS, losses.to_try(3), strict=True):
        assert all(torch.equal(candidate[key], losses.blend(weight)[key]) for key in losses.errors)


def test_further_candidates_scale_each_layer_alike_in_all_its_forms(residual: nn.Module) -> None:
    layers = survey(residual, _images()[:1])
    losses = foretell(residual, layers, calibrate(residual, layers, _images()))
    found, again, other = losses.to_try(5), losses.to_try(5), losses.to_try(4, seed=1)
    assert len(found) == 5
    assert all(torch.equal(found[4][key], again[4][key]) for key in losses.errors)
    assert any(not torch.equal(found[3][key], other[3][key]) for key in losses.errors)
    scales: dict[str, set[float]] = {}
    for (name, form), loss in found[4].items():
        blend = losses.blend(BLENDS[1])[name, form]
        scales.setdefault(name, set()).add(round(float(loss.sum() / blend.sum()), 4))
    assert all(len(of_layer) == 1 for of_layer in scales.values())
    assert len(set.union(*scales.values())) == len(scales)
    assert plan_ranks(layers, MacBudget(0.6), distortions=found[4]).fraction(Unit.MACS) <= 0.6


def test_small_networks_are_tried_more_often() -> None:
    assert usual_trials(18 * 10**8, 200) == 1  # where three would take minutes
    assert usual_trials(3 * 10**8, 200) == 3
    assert usual_trials(4 * 10**7, 2000) == 3
    assert usual_trials(10**7, 2000) == 13
    assert usual_trials(10**6, 2000) == 16
    assert usual_trials(10**6, 1) == 16


def test_answers_are_softened_as_far_as_they_are_sure() -> None:
    scores = torch.tensor([[0.0, 1.0, 2.0], [2.0, -1.0, 0.0]])
    for sure, temperature in ((1.0, 1.0), (2.0, 2.0), (4.0, 4.0), (50.0, 4.0)):
        assert _softening([(sure * scores).log_softmax(-1)]) == temperature
