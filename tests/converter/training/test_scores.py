"""Scores of a run: of what it starts from, of each epoch, and the best of these."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from torch import Tensor, nn

from dprp.converter import (
    FinetuneConfig,
    MacBudget,
    RankRatio,
    RunFolder,
    Step,
    convert,
    evaluate,
    finetune,
    plan_ranks,
    survey,
)
from dprp.converter.chain.gain import Gain, gain_of


def network(dense: nn.Module) -> nn.Module:
    return convert(dense, plan_ranks(survey(dense, torch.zeros(1, 3, 16, 16)), RankRatio(0.5)))


def batches(seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8)) for _ in range(4)]


def config(**changes: object) -> FinetuneConfig:
    return FinetuneConfig(**({"epochs": 3, "learning_rate": 0.05, "cpu": True} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_each_epoch_tells_what_training_started_from(residual: nn.Module, average: float) -> None:
    start, told = network(residual), list[Step]()
    tuned = finetune(
        start,
        batches(0),
        config(average=average),
        evaluate_on=batches(0),
        on_step=told.append,
        progress=False,
    )
    scored = [step for step in told if step.score is not None]
    assert [step.epoch for step in scored] == [1, 2, 3]
    assert {step.start for step in scored} == {evaluate(start, batches(0)).top1}
    assert scored[-1].score == evaluate(tuned, batches(0)).top1
    assert scored[-1].best == max(step.score or 0.0 for step in scored)
    assert all(step.start is None and step.best is None for step in told if step.score is None)
    assert gain_of(told) == Gain(evaluate(start, batches(0)).top1, evaluate(tuned, batches(0)).top1)


def test_what_training_comes_to_does_not_depend_on_scores(residual: nn.Module) -> None:
    start = network(residual)
    ends = [finetune(start, batches(0), config(), evaluate_on=on, progress=False) for on in (None, batches(1))]
    one, other = (end.state_dict() for end in ends)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_where_ranks_fall_there_is_no_start_to_compare_with(residual: nn.Module) -> None:
    told: list[Step] = []
    how = config(budget=MacBudget(0.4), cuts=2, rank_multiple=2)
    finetune(network(residual), batches(0), how, evaluate_on=batches(1), on_step=told.append, progress=False)
    assert [step.score is not None for step in told].count(True) == 3
    assert all(step.start is None for step in told)
    assert gain_of(told) is None


@pytest.mark.parametrize("at", [1, 6])
def test_the_start_survives_an_interruption(residual: nn.Module, tmp_path: Path, at: int) -> None:
    start, told = network(residual), list[Step]()

    def stop(step: Step) -> None:
        if step.step == at:
            signal.raise_signal(signal.SIGINT)

    path = tmp_path / "small.run"
    with pytest.raises(KeyboardInterrupt):
        finetune(
            start,
            batches(0),
            config(),
            evaluate_on=batches(1),
            folder=RunFolder(path),
            on_step=stop,
            progress=False,
        )
    finetune(
        start,
        batches(0),
        config(),
        evaluate_on=batches(1),
        folder=RunFolder(path, resume=True),
        on_step=told.append,
        progress=False,
    )
    assert told[-1].start == evaluate(start, batches(1)).top1


def test_a_run_survives_an_end_while_its_start_is_scored(residual: nn.Module, tmp_path: Path) -> None:
    class Ending(list[tuple[Tensor, Tensor]]):
        def __iter__(self) -> NoReturn:
            raise RuntimeError("killed")

    start, told = network(residual), list[Step]()
    how = {"folder": RunFolder(tmp_path / "small.run"), "progress": False}
    with pytest.raises(RuntimeError, match="killed"):
        finetune(start, batches(0), config(), evaluate_on=Ending(), **how)  # type: ignore[arg-type]
    how = {"folder": RunFolder(tmp_path / "small.run", resume=True), "on_step": told.append, "progress": False}
    finetune(start, batches(0), config(), evaluate_on=batches(1), **how)  # type: ignore[arg-type]
    assert [step.step for step in told] == list(range(1, 13))
    assert told[-1].start == evaluate(start, batches(1)).top1


def test_a_gain_says_where_training_was_no_help() -> None:
    assert str(Gain(90.0, 91.25)) == "90.00 % top-1 before training, 91.25 % after it"
    assert str(Gain(90.0, 90.0)) == "90.00 % top-1 before training, 90.00 % after it"
    assert str(Gain(56.25, 51.0)) == (
        "56.25 % top-1 before training, 51.00 % after it: it was no help here; keep what it started from (epochs 0), "
        "let the dense network alone teach (distill 1), or train on more images"
    )
