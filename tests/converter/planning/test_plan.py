"""Plans: what they promise, and what cannot be planned."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dprp.converter import (
    BudgetError,
    Energy,
    FixedRank,
    Form,
    MacBudget,
    ModelError,
    ParamBudget,
    PlanError,
    RankRatio,
    Unit,
    convert,
    evaluate,
    headroom,
    parse_budget,
    plan_of,
    plan_ranks,
    survey,
)
from dprp.converter.lowrank.costs import break_even_rank, rank_step
from dprp.converter.planning.allocate import Choice, allocate
from dprp.converter.planning.plan import LayerPlan
from dprp.converter.planning.planner import coarsest_good
from dprp.converter.training.pruner import RankPruner

EXAMPLE = torch.zeros(1, 3, 16, 16)


@st.composite
def markets(draw: st.DrawFn) -> tuple[list[list[Choice]], float]:
    layers = [
        [
            Choice(float(draw(st.integers(1, 30))), float(draw(st.integers(0, 30))), rank=index)
            for index in range(draw(st.integers(1, 4)))
        ]
        for _ in range(draw(st.integers(1, 4)))
    ]
    return layers, float(draw(st.integers(1, 130)))


def best_by_trying_all(layers: list[list[Choice]], limit: float) -> float | None:
    totals = [(0.0, 0.0)]
    for choices in layers:
        totals = [(cost + c.cost, lost + c.distortion) for cost, lost in totals for c in choices]
    return min((lost for cost, lost in totals if cost <= limit), default=None)


@given(markets())
@settings(max_examples=200, deadline=None)
def test_allocation_keeps_the_limit_and_is_the_best(market: tuple[list[list[Choice]], float]) -> None:
    layers, limit = market
    found, best = allocate(layers, limit), best_by_trying_all(layers, limit)
    assert (found is None) == (best is None)
    if found is None or best is None:
        return
    assert all(choice in choices for choice, choices in zip(found, layers, strict=True))
    assert sum(choice.cost for choice in found) <= limit
    assert sum(choice.distortion for choice in found) == best


@pytest.mark.parametrize("budget", [MacBudget(0.75), MacBudget(0.5), MacBudget(0.3), ParamBudget(0.5)])
def test_budget_is_kept_and_used(resnet20: nn.Module, budget: MacBudget | ParamBudget) -> None:
    plan = plan_ranks(survey(resnet20, torch.zeros(1, 3, 32, 32)), budget)
    assert plan.fraction(budget.unit) <= budget.fraction
    assert plan.fraction(budget.unit) > budget.fraction - 0.01
    for layer in plan.factored.values():
        assert layer.shape is not None
        assert layer.form is not None
        assert layer.rank is not None
        assert layer.rank % 8 == 0 or break_even_rank(layer.shape, layer.form) < 8
    assert all(layer.reason for layer in plan if not layer.factored)


def test_plan_totals_are_the_converted_models(residual: nn.Module) -> None:
    plan = plan_ranks(survey(residual, EXAMPLE), MacBudget(0.6), rank_multiple=2)
    model = convert(residual, plan)
    again = survey(model, EXAMPLE)
    assert again.macs == plan.total(Unit.MACS)
    scales = sum(layer.rank or 0 for layer in plan.factored.values())  # s folds into u
    assert again.params - scales == plan.total(Unit.PARAMS)
    assert plan_of(model) == plan


def test_keep_and_forms(residual: nn.Module) -> None:
    layers = survey(residual, EXAMPLE)
    plan = plan_ranks(layers, MacBudget(0.95), keep=["down*", "alias"], forms=[Form.CHANNEL], rank_multiple=1)
    by_name = {layer.name: layer for layer in plan}
    assert by_name["down"].reason == "kept by name"
    assert by_name["twice"].reason == "kept by name"  # by its other name
    assert all(layer.form is Form.CHANNEL for layer in plan.factored.values())
    with pytest.raises(PlanError, match=r"keep pattern 'layer9\.\*' matches no layer"):
        plan_ranks(layers, MacBudget(0.8), keep=["layer9.*"])


def test_rules(residual: nn.Module) -> None:
    layers = survey(residual, EXAMPLE)
    assert {layer.rank for layer in plan_ranks(layers, FixedRank(3)).factored.values()} == {3}
    kept = plan_ranks(layers, Energy(0.9)).factored.values()
    assert all(layer.error is not None and layer.error <= 0.1 + 1e-9 for layer in kept)
    for layer in plan_ranks(layers, RankRatio(0.3)).factored.values():
        assert layer.shape is not None
        assert layer.form is not None
        assert layer.rank is not None
        assert layer.rank <= break_even_rank(layer.shape, layer.form)


def test_nothing_grows(residual: nn.Module) -> None:
    layers = survey(residual, EXAMPLE)
    for policy in (FixedRank(1000), Energy(1.0), RankRatio(0.9), MacBudget(1.0), ParamBudget(1.0)):
        plan = plan_ranks(layers, policy)
        for unit in Unit:
            assert plan.total(unit) <= plan.dense_total(unit), policy


@given(st.floats(0.35, 1.0), st.floats(0.35, 1.0))
@settings(max_examples=15, deadline=None)
def test_a_larger_budget_predicts_no_larger_error(one: float, other: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3)
    ).eval()
    layers = survey(model, EXAMPLE)
    small, large = sorted((one, other))
    errors = [
        sum(layer.error or 0.0 for layer in plan_ranks(layers, MacBudget(part), rank_multiple=1))
        for part in (small, large)
    ]
    assert errors[1] <= errors[0] + 1e-9


@pytest.mark.parametrize("multiple", [1, 4, 8])
def test_errors_fall_at_every_step_of_the_budget(residual: nn.Module, multiple: int) -> None:
    """Over the edge too below which multiples no longer reach and every rank is allowed."""
    layers = survey(residual, EXAMPLE)
    before = None
    for step in range(60, 400):
        try:
            plan = plan_ranks(layers, MacBudget(step / 400), rank_multiple=multiple)
        except BudgetError:
            assert before is None
            continue
        error = sum(layer.error or 0.0 for layer in plan)
        assert plan.fraction(Unit.MACS) <= step / 400
        assert before is None or error <= before + 1e-9, step
        before = error
    assert before is not None


def test_headroom_stays_between_the_plan_and_break_even(residual: nn.Module) -> None:
    plan = plan_ranks(survey(residual, EXAMPLE), MacBudget(0.5), rank_multiple=2)
    wide = headroom(plan, 1.5, rank_multiple=2)
    for name, layer in wide.factored.items():
        assert layer.shape is not None
        assert layer.form is not None
        assert layer.rank is not None
        assert (plan.factored[name].rank or 0) <= layer.rank <= break_even_rank(layer.shape, layer.form)
    assert wide.fraction(Unit.MACS) > plan.fraction(Unit.MACS)


def test_a_budget_out_of_reach_says_what_can_be_reached(residual: nn.Module) -> None:
    layers = survey(residual, EXAMPLE)
    with pytest.raises(
        BudgetError, match=r"budget macs=0\.001 cannot be reached.* 0\.\d+ of the MACs remain"
    ) as caught:
        plan_ranks(layers, MacBudget(0.001))
    least = float(str(caught.value).split("rank ")[1].split(" of")[0])
    assert plan_ranks(layers, MacBudget(least + 0.001)).fraction(Unit.MACS) <= least + 0.001


def test_weights_that_are_not_finite_are_named(residual: nn.Module) -> None:
    with torch.no_grad():
        residual.get_parameter("down.weight")[0, 0, 0, 0] = float("nan")
    with pytest.raises(ModelError, match="down: its weight holds values that are not finite"):
        plan_ranks(survey(residual, EXAMPLE), MacBudget(0.5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("macs=0", r"budget macs=0 is not in \(0, 1\]; give the part to keep, for example macs=0.5"),
        ("macs=1.5", r"budget macs=1\.5 is not in \(0, 1\]"),
        ("params=nan", r"budget params=nan is not in \(0, 1\]"),
        ("flops=0.5", r"budget 'flops=0\.5' is not UNIT=FRACTION with unit macs, params or latency"),
        ("0.5", r"budget '0\.5' is not UNIT=FRACTION"),
        ("macs=half", r"budget 'macs=half': 'half' is not a number"),
    ],
)
def test_budgets_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        parse_budget(text)


def test_budget_reads() -> None:
    assert parse_budget("macs=0.5") == MacBudget(0.5)
    assert parse_budget("Params=1") == ParamBudget(1.0)


def test_scores_that_are_not_finite_are_no_accuracy(residual: nn.Module) -> None:
    with torch.no_grad():
        residual.head.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="the model's scores are not finite on these images"):
        evaluate(residual, [(torch.randn(4, 3, 16, 16), torch.zeros(4, dtype=torch.int64))])


def test_wide_layers_have_coarser_steps() -> None:
    """By default: 8, and 16 from 64 channels on, in planning, in the headroom above it and in cutting."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 48, 3), nn.ReLU(), nn.Conv2d(48, 64, 3), nn.ReLU(), nn.Conv2d(64, 96, 3), nn.ReLU(),
        nn.Conv2d(96, 96, 3, groups=4),
    ).eval()  # fmt: skip
    layers = survey(model, torch.zeros(1, 3, 16, 16))
    shapes = {layer.name: layer.shape for layer in layers if layer.shape is not None}
    steps = {name: rank_step(shape, None) for name, shape in shapes.items()}
    assert steps == {"0": 8, "2": 8, "4": 16, "6": 8}
    assert {rank_step(shape, 5) for shape in shapes.values()} == {5}
    coarse = 0
    for part in (0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9):
        plan, finer = (plan_ranks(layers, MacBudget(part), rank_multiple=multiple) for multiple in (None, 8))
        lost, least = (sum(layer.error or 0.0 for layer in one) for one in (plan, finer))
        assert 0.9 * lost <= least <= lost + 1e-9
        coarse += all((layer.rank or 0) % steps[name] == 0 for name, layer in plan.factored.items())
        wide = headroom(plan, 1.3)
        for name, layer in wide.factored.items():
            assert (layer.rank or 1) % steps[name] == 0 or layer.rank in (
                _break_even(layer),
                plan.factored[name].rank,
            )
        pruner = RankPruner(convert(model, wide), wide, None, rank_multiple=None)
        ranks = pruner.ranks_within(plan.fraction(Unit.MACS), Unit.MACS)
        assert all(rank % 8 == 0 or rank == wide.factored[name].rank for name, rank in ranks.items())
    assert 0 < coarse < 8


def test_finer_steps_are_taken_where_they_lose_a_tenth_less() -> None:
    plans = [[Choice(1.0, lost), Choice(1.0, lost)] for lost in (1.0, 0.95, 0.85, 0.8)]
    assert coarsest_good(plans[:2]) is plans[0]
    assert coarsest_good(plans) is plans[2]
    assert coarsest_good([None, plans[1], None]) is plans[1]
    assert coarsest_good([None]) is None


def _break_even(layer: LayerPlan) -> int:
    assert layer.shape is not None
    assert layer.form is not None
    return break_even_rank(layer.shape, layer.form)
