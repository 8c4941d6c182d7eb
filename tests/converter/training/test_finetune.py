"""Fine-tuning: where a run lands, and what it refuses."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

from dprp.converter import (
    BudgetError,
    ConverterWarning,
    FinetuneConfig,
    MacBudget,
    ModelError,
    OptimizerKind,
    ParamBudget,
    RankRatio,
    Step,
    TrainingError,
    Unit,
    convert,
    evaluate,
    finetune,
    plan_of,
    plan_ranks,
    survey,
)
from dprp.converter.conversion.attached import low_rank_layers
from dprp.converter.lowrank.forms import Form

EXAMPLE = torch.zeros(1, 3, 16, 16)


def wide(residual: nn.Module) -> nn.Module:
    """Everything factored, so that there is much to cut."""
    return convert(residual, plan_ranks(survey(residual, EXAMPLE), RankRatio(1.0), forms=[Form.SPATIAL]))


def blobs(count: int = 96) -> list[tuple[Tensor, Tensor]]:
    """Ten kinds of picture that a small network can learn to tell apart."""
    generator = torch.Generator().manual_seed(3)
    kinds = torch.randn(10, 3, 16, 16, generator=generator)
    labels = torch.arange(count) % 10
    images = kinds[labels] + 0.3 * torch.randn(count, 3, 16, 16, generator=generator)
    return [(images[start : start + 16], labels[start : start + 16]) for start in range(0, count, 16)]


def quick(**changes: object) -> FinetuneConfig:
    return FinetuneConfig(**({"epochs": 4, "cuts": 8, "rank_multiple": 2, "cpu": True} | changes))


@pytest.mark.parametrize("optimizer", list(OptimizerKind))
@pytest.mark.parametrize("budget", [MacBudget(0.5), ParamBudget(0.4)])
def test_a_run_lands_on_its_budget_and_learns(
    residual: nn.Module, budget: MacBudget | ParamBudget, optimizer: OptimizerKind
) -> None:
    start = wide(residual)
    steps: list[Step] = []
    rates = {OptimizerKind.ADAMW: 0.005, OptimizerKind.MUON: 0.07}
    new = finetune(
        start,
        blobs(),
        quick(epochs=8, budget=budget, optimizer=optimizer, learning_rate=rates.get(optimizer, 0.05)),
        evaluate_on=blobs(),
        on_step=steps.append,
        progress=False,
    )
    plan = plan_of(new)
    assert plan.fraction(budget.unit) <= budget.fraction
    # Within one per cent, or one step of the rank of the layer whose rank costs most.
    largest = max(
        2 * (plan.with_ranks({name: 2}).total(budget.unit) - plan.with_ranks({name: 1}).total(budget.unit))
        for name in plan.factored
    )
    slack = budget.fraction * plan.dense_total(budget.unit) - plan.total(budget.unit)
    assert slack <= max(0.01 * plan.dense_total(budget.unit), largest)
    for name, layer in low_rank_layers(new).items():
        assert layer.u.shape[-1] == layer.s.shape[-1] == layer.v.shape[-2] == plan.factored[name].rank
    assert evaluate(new, blobs()).top1 > 90
    assert not new.training
    # Many small cuts, not one; never up again; the budget is met by half-time and kept.
    parts = [step.macs if budget.unit is Unit.MACS else step.params for step in steps]
    assert sum(bool(step.cut and step.cut.after) for step in steps) >= 3
    assert parts == sorted(parts, reverse=True)
    assert parts[len(parts) // 2] <= budget.fraction
    assert [step.score is not None for step in steps].count(True) == 8
    assert low_rank_layers(start)["down"].rank == low_rank_layers(start)["down"].full_rank


def test_the_threshold_mode_drops_what_is_small(residual: nn.Module) -> None:
    start = wide(residual)
    with torch.no_grad():
        layer = low_rank_layers(start)["twice"]
        layer.s[5:] = layer.s[0] * 1e-4
    new = finetune(start, blobs(), quick(threshold=0.01, epochs=1), progress=False)
    assert low_rank_layers(new)["twice"].rank < 20
    assert low_rank_layers(new)["down"].rank > 20


def test_a_second_run_may_take_another_precision(residual: nn.Module) -> None:
    start = wide(residual)
    for precision in ("no", "bf16"):
        new = finetune(start, blobs(16), quick(epochs=1, mixed_precision=precision), progress=False)
        assert low_rank_layers(new)["down"].u.dtype == torch.float32


def test_the_plan_says_which_budget_it_met(residual: nn.Module) -> None:
    new = finetune(wide(residual), blobs(), quick(budget=MacBudget(0.5)), progress=False)
    assert plan_of(new).budget == "macs=0.5"


def test_without_budget_ranks_stay(residual: nn.Module) -> None:
    start = wide(residual)
    new = finetune(start, blobs(), quick(epochs=1), progress=False)
    assert plan_of(new) == plan_of(start)


def test_the_same_seed_gives_the_same_run(residual: nn.Module) -> None:
    start, config = wide(residual), quick(epochs=2, budget=MacBudget(0.5))
    one, two = (finetune(start, blobs(), config, teacher=residual, progress=False) for _ in range(2))
    assert plan_of(one) == plan_of(two)
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name


class Promised(list):
    """A loader that gives fewer batches than its length says, as those that filter or stream do."""

    def __len__(self) -> int:
        return 20


@pytest.mark.parametrize(("epochs", "until"), [(1, 0.5), (2, 0.5), (3, 0.1), (2, 1.0)])
def test_the_budget_is_met_whatever_the_loader_gives(residual: nn.Module, epochs: int, until: float) -> None:
    steps: list[Step] = []
    config = quick(epochs=epochs, budget=MacBudget(0.4), prune_until=until, cuts=1)
    new = finetune(
        wide(residual), Promised(blobs()), config, evaluate_on=blobs(), on_step=steps.append, progress=False
    )
    assert plan_of(new).fraction(Unit.MACS) <= 0.4
    assert steps[-1].macs == plan_of(new).fraction(Unit.MACS)
    assert [step.score is not None for step in steps].count(True) == epochs
    assert steps[-1].score is not None


def test_a_loader_that_runs_dry_still_meets_the_budget(residual: nn.Module) -> None:
    class Once:
        def __init__(self) -> None:
            self.batches = iter(blobs())

        def __len__(self) -> int:
            return 6

        def __iter__(self) -> object:
            return self.batches

    new = finetune(wide(residual), Once(), quick(epochs=4, budget=MacBudget(0.4)), progress=False)
    assert plan_of(new).fraction(Unit.MACS) <= 0.4


def test_a_single_image_left_over_is_dropped_where_it_has_no_variance() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    new = convert(model.eval(), plan_ranks(survey(model, EXAMPLE), RankRatio(0.3)))
    images, labels = blobs(17)[0]
    seen: list[Step] = []
    batches = [(images, labels), (images[:1], labels[:1])]
    finetune(new, batches, quick(epochs=2), on_step=seen.append, progress=False)
    assert len(seen) == 2
    with pytest.raises(
        ModelError, match=r"cannot take an input of shape \(1, 3, 16, 16\), float32 \(2: Expected more"
    ):
        finetune(new, batches[1:], quick(epochs=1), progress=False)


def test_images_that_do_not_fit_are_one_sentence(residual: nn.Module) -> None:
    batches = [(torch.randn(4, 5, 16, 16), torch.zeros(4, dtype=torch.int64))]
    with pytest.raises(ModelError, match=r"cannot take an input of shape \(4, 5, 16, 16\), float32 \(stem: "):
        finetune(wide(residual), batches, quick(), progress=False)


def test_mistakes(residual: nn.Module) -> None:
    start = wide(residual)
    with pytest.raises(BudgetError, match=r"budget macs=0\.001 cannot be reached by cutting ranks.* remain"):
        finetune(start, blobs(), quick(budget=MacBudget(0.001)), progress=False)
    with pytest.raises(TrainingError, match="no batches or no length"):
        finetune(start, [], quick(), progress=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the loss was .*; going back to step 0, and on", ConverterWarning)
        with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+; lower the learning rate"):
            finetune(start, blobs(), quick(learning_rate=1e30, clip=0), progress=False)
    with pytest.raises(TrainingError, match="no parameter of the model wants a gradient"):
        finetune(copy.deepcopy(start).requires_grad_(False), blobs(), quick(), progress=False)
    for wrong, message in (
        ({"epochs": 0}, "epochs 0 is below 1"),
        ({"threshold": 2.0}, r"threshold 2 is not in \(0, 1\)"),
        ({"threshold": 0.1, "budget": MacBudget(0.5)}, "give one of them"),
        ({"learning_rate": 0.0}, "learning rate 0 is not above 0"),
        ({"distill": 1.5}, r"distill 1\.5 is not in 0\.\.1"),
    ):
        with pytest.raises(TrainingError, match=message):
            quick(**wrong)
