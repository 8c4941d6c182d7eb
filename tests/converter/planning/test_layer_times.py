"""Plans under a latency budget, with times that are given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dprp.converter import (
    BudgetError,
    Form,
    LatencyBudget,
    LayerTimes,
    Plan,
    break_even_rank,
    chains_to_time,
    plan_ranks,
    survey,
)
from dprp.converter.planning.layer_times import timed_ranks

EXAMPLE = torch.zeros(1, 3, 16, 16)


def times_of(residual: nn.Module, slow: str = "") -> LayerTimes:
    """A machine whose time is its MACs, but for one layer that is never faster in factors."""
    layers_ms = {}
    for variant, shapes in chains_to_time(survey(residual, EXAMPLE), 2).items():
        macs = sum(shape.macs for shape in shapes)
        layers_ms[variant] = macs * 1e-6 * (100 if variant[0] == slow and variant[1] is not None else 1)
    rest = 0.5
    return LayerTimes(rest + sum(ms for (_, form, _), ms in layers_ms.items() if form is None), layers_ms)


def test_what_is_asked_for(residual: nn.Module) -> None:
    layers = survey(residual, EXAMPLE)
    chains = chains_to_time(layers, 2)
    assert {name for name, form, _ in chains if form is None} == {
        "stem",
        "down",
        "twice",
        "head",
    }
    assert len(chains["twice", None, 0][0].calls) == 2
    for (name, form, rank), shapes in chains.items():
        layer = next(found for found in layers if found.name == name)
        assert layer.shape is not None
        if form is not None:
            assert len(shapes) == 2
            assert rank <= break_even_rank(layer.shape, form)
    only = chains_to_time(layers, 2, [Form.CHANNEL])
    assert {form for _, form, _ in only} == {None, Form.CHANNEL}


def test_ranks_to_time() -> None:
    assert timed_ranks(5, 8) == [1, 2, 3, 4, 5]
    assert timed_ranks(30, 8) == [8, 16, 24]
    assert timed_ranks(380, 8) == list(range(32, 381, 32))
    assert all(len(timed_ranks(most, 8)) <= 12 for most in range(8, 2000))


def test_the_budget_is_kept_and_what_is_not_faster_stays(residual: nn.Module) -> None:
    layers = survey(residual, EXAMPLE)
    for budget in (0.9, 0.8, 0.7):
        plan = plan_ranks(layers, LatencyBudget(budget), times=times_of(residual, slow="down"))
        assert plan.dense_ms is not None
        assert plan.ms is not None
        assert plan.ms <= budget * plan.dense_ms
        rows = {layer.name: layer for layer in plan}
        assert not rows["down"].factored
        assert rows["twice"].factored
        assert plan.ms == pytest.approx(plan.dense_ms + sum((r.ms or 0) - (r.dense_ms or 0) for r in plan))
    assert "ms" in str(plan)
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.with_ranks({"twice": 1}).ms is None


def test_mistakes(residual: nn.Module) -> None:
    layers = survey(residual, EXAMPLE)
    with pytest.raises(BudgetError, match=r"budget latency=0\.5 needs measured times"):
        plan_ranks(layers, LatencyBudget(0.5))
    with pytest.raises(BudgetError, match=r"budget latency=0\.1 cannot be reached.* of the latency remains"):
        plan_ranks(layers, LatencyBudget(0.1), times=times_of(residual))
    odd = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 8, 3)).eval()
    with pytest.raises(BudgetError, match=r"1: the latency of a ConvTranspose2d is not known; use a budget of macs"):
        chains_to_time(survey(odd, EXAMPLE), 2)
