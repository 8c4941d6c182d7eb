"""Plans on trial differ, and none of them promises to be far worse than another."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from dprp.converter import (
    BudgetError,
    Losses,
    MacBudget,
    Plan,
    calibrate,
    convert,
    foretell,
    plan_ranks,
    survey,
)
from dprp.converter.analysis.calibration import Energies
from dprp.converter.conversion import choosing
from dprp.converter.conversion.candidates import best_plan, candidates


class Case:
    """A network with its losses, and how plans for 0.7 of its MACs are made."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.images = model, torch.randn(60, 3, 16, 16)
        self.layers = survey(model, self.images[:1])
        self.calibration = calibrate(model, self.layers, self.images)
        self.losses = foretell(model, self.layers, self.calibration)

    def to_plan(self, distortions: Energies) -> Plan:
        return plan_ranks(self.layers, MacBudget(0.7), distortions=distortions, rank_multiple=1)


@pytest.fixture
def case(residual: nn.Module) -> Case:
    return Case(residual)


def test_plans_differ_and_the_one_without_a_trial_is_first(case: Case) -> None:
    found = candidates(case.losses, 5, case.to_plan)
    assert 2 <= len(found) <= 5
    assert len({candidate.plan.layers for candidate in found}) == len(found)
    (alone,) = candidates(case.losses, 1, case.to_plan)
    assert alone.plan == case.to_plan(case.losses.to_try(1)[0])
    for candidate in found:
        assert candidate.plan == case.to_plan(candidate.distortions)


def _promised(losses: Losses, plan: Plan) -> float:
    return sum(float(losses.nats[name, layer.form][layer.rank]) for name, layer in plan.factored.items())  # type: ignore


def test_none_promises_to_cost_far_more_nats(case: Case) -> None:
    # Errors that say the opposite of nats: plans by them are the worst there are.
    errors = {key: 1e-9 / loss.clamp_min(1e-9) for key, loss in case.losses.nats.items()}
    losses = Losses(errors, case.losses.nats)
    every = [case.to_plan(way) for way in losses.to_try(15)]
    promised = [_promised(losses, plan) for plan in every]
    assert max(promised) > 1.25 * min(promised)
    for candidate in candidates(losses, 15, case.to_plan):
        assert _promised(losses, candidate.plan) <= 1.25 * min(promised)


def test_the_best_of_them_is_taken(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Plan] = []

    def counted(model: nn.Module, plan: Plan, **how: object) -> nn.Module:
        tried.append(plan)
        return convert(model, plan, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(choosing, "convert", counted)
    best = best_plan(case.model, case.losses, case.calibration, case.to_plan, trials=3)
    found = [candidate.plan for candidate in candidates(case.losses, 3, case.to_plan)]
    assert tried == found
    assert best.plan in found
    tried.clear()
    assert best_plan(case.model, case.losses, case.calibration, case.to_plan, trials=1).plan == found[0]
    assert not tried


def test_a_budget_out_of_reach_is_said(case: Case) -> None:
    to_plan = partial(plan_ranks, case.layers, MacBudget(1e-6))
    with pytest.raises(BudgetError):
        best_plan(case.model, case.losses, case.calibration, lambda way: to_plan(distortions=way), trials=3)
