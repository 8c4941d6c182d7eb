"""A run that was cut off goes on as if it had not been: the same weights, bit for bit, and the same record."""

from __future__ import annotations

import json
import re
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dprp.converter import (
    ConverterWarning,
    FinetuneConfig,
    MacBudget,
    OptimizerKind,
    RankPenalty,
    RankRatio,
    RunFolder,
    Step,
    TrainingError,
    convert,
    finetune,
    input_moments,
    plan_of,
    plan_ranks,
    survey,
)
from dprp.converter.conversion.attached import low_rank_layers
from dprp.converter.lowrank.forms import Form
from dprp.converter.training.picture import draw, trajectories
from dprp.converter.training.run_folder import BEFORE, HISTORY, STATE
from dprp.converter.training.trackers import TRACKERS


class Noisy(Dataset[tuple[Tensor, int]]):
    """Pictures of ten kinds, with new noise at each look."""

    def __init__(self) -> None:
        self.kinds = torch.randn(10, 3, 16, 16, generator=torch.Generator().manual_seed(3))

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.kinds[index % 10] + 0.3 * torch.randn(3, 16, 16), index % 10


def data() -> DataLoader[tuple[Tensor, int]]:
    return DataLoader(Noisy(), 8, shuffle=True, generator=torch.Generator().manual_seed(0))


def network(residual: nn.Module) -> nn.Module:
    """Everything factored."""
    layers = survey(residual, torch.zeros(1, 3, 16, 16))
    return convert(residual, plan_ranks(layers, RankRatio(1.0), forms=[Form.SPATIAL]))


class Chancy(nn.Module):
    """A loss with random numbers of its own, as dropout has."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(nn.functional.dropout(outputs, 0.2), targets)


@contextmanager
def noted() -> Iterator[list[str]]:
    """What is said in the block."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    assert all(issubclass(one.category, ConverterWarning) for one in caught)
    said += [str(one.message) for one in caught]


def settings(**changes: object) -> FinetuneConfig:
    usual = {"epochs": 4, "budget": MacBudget(0.4), "cuts": 6, "prune_until": 0.8, "rank_multiple": 2, "cpu": True}
    return FinetuneConfig(**(usual | changes))  # 20 steps


def stopping(at: int) -> Any:
    def on_step(step: Step) -> None:
        if step.step == at:
            signal.raise_signal(signal.SIGINT)

    return on_step


def same(one: nn.Module, other: nn.Module) -> bool:
    assert plan_of(one) == plan_of(other)
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


WAYS: list[dict[str, object]] = [
    {},
    {"optimizer": OptimizerKind.ADAMW, "learning_rate": 0.003, "accumulate": 2},
    {"optimizer": OptimizerKind.SGD},
    {"rank_penalty": RankPenalty.FADE, "average": 0.9},
    {"rank_penalty": RankPenalty.TAIL, "rank": 0.1, "matching": 1.0, "epochs": 2},
]


@pytest.mark.parametrize("way", WAYS, ids=["muon", "adamw", "sgd", "fade", "tail"])
def test_a_run_goes_on_as_if_it_had_not_been_stopped(
    residual: nn.Module, way: dict[str, object], tmp_path: Path
) -> None:
    start, config = network(residual), settings(**way)
    kinds = Noisy().kinds
    moments = input_moments(start, kinds)
    told: list[Step] = []
    judges = [(kinds, torch.arange(10))]
    more: dict[str, Any] = {"teacher": residual, "moments": moments, "evaluate_on": judges, "progress": False}
    more["loss"] = Chancy()
    whole = finetune(start, data(), config, **more, on_step=told.append)
    assert len({tuple((step.cut.after if step.cut else {}).items()) for step in told}) > 3
    for at in (1, len(told) // 3, len(told) // 2 + 1, len(told)):
        path = tmp_path / f"run{at}"
        with pytest.raises(KeyboardInterrupt):
            finetune(start, data(), config, **more, folder=RunFolder(path), on_step=stopping(at))
        torch.rand(3)
        rest: list[Step] = []
        folder = RunFolder(path, resume=True)
        again = more | {"moments": None}  # which the folder has
        resumed = finetune(start, data(), config, **again, folder=folder, on_step=rest.append)
        assert same(resumed, whole)
        assert [step.step for step in rest] == list(range(at + 1, len(told) + 1))
        assert folder.history() == told


def test_a_state_that_does_not_read_is_not_the_last(residual: nn.Module, tmp_path: Path) -> None:
    start, path = network(residual), tmp_path / "run"
    whole = finetune(start, data(), settings(), progress=False)
    with pytest.raises(KeyboardInterrupt):
        finetune(start, data(), settings(), folder=RunFolder(path, every=3), on_step=stopping(8), progress=False)
    (path / STATE).write_bytes((path / STATE).read_bytes()[:5000])
    with (path / HISTORY).open("a") as file:
        file.write('{"step": 9, "lo')
    seen: list[Step] = []
    with noted() as said:
        folder = RunFolder(path, resume=True)
        resumed = finetune(start, data(), settings(), folder=folder, on_step=seen.append, progress=False)
    assert re.search("state.pt: does not read .*; going on from the one before", said[0])
    assert seen[0].step == 7
    assert same(resumed, whole)
    assert [step.step for step in folder.history()] == list(range(1, 21))
    folder.finish()
    assert {file.name for file in path.iterdir()} == {"config.json", "plan.json", HISTORY, "ranks.png"}
    with pytest.raises(TrainingError, match="run: has no state to go on from: its run has ended"):
        RunFolder(path, resume=True)


def test_a_full_disk_keeps_the_state_before(
    residual: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, path = network(residual), tmp_path / "run"
    saved, saves = torch.save, []

    def full(state: Any, file: Any) -> None:
        saves.append(state["step"])
        if len(saves) > 3:
            file.write(b"half")
            try:
                raise OSError(28, "No space left on device")
            except OSError:
                raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904  as torch does
        saved(state, file)

    monkeypatch.setattr(torch, "save", full)
    with noted() as said:
        whole = finetune(start, data(), settings(), folder=RunFolder(path, every=4), progress=False)
    monkeypatch.undo()
    assert len(said) == 1
    assert re.search(r"No space left on device\); it goes on, and what was saved before is kept", said[0])
    assert saves == [0, 4, 8, 12, 16, 20]
    assert {file.name for file in path.iterdir()} == {"config.json", "plan.json", HISTORY, STATE, BEFORE}
    seen: list[Step] = []
    resumed = finetune(
        start, data(), settings(), folder=RunFolder(path, resume=True), on_step=seen.append, progress=False
    )
    assert seen[0].step == 9
    assert same(resumed, whole)


def test_a_step_that_is_not_finite_is_left_out(residual: nn.Module) -> None:
    calls = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        found = nn.functional.cross_entropy(outputs, targets)
        return found * float("nan") if len(calls) in (4, 7, 8) else found

    seen: list[Step] = []
    with noted() as said:
        new = finetune(
            network(residual), data(), settings(budget=None), loss=loss, on_step=seen.append, progress=False
        )
    assert said[0] == "the loss or its gradient was not finite at step 4; the step was left out"
    assert [step.step for step in seen if step.skipped] == [4, 7, 8]
    assert len(seen) == 20
    assert all(value.isfinite().all() for value in new.state_dict().values())


def test_several_in_a_row_go_back_and_on_more_slowly(residual: nn.Module, tmp_path: Path) -> None:
    calls = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        found = nn.functional.cross_entropy(outputs, targets)
        return found * float("inf") if 8 <= len(calls) <= 10 else found

    folder = RunFolder(tmp_path / "run", every=5)
    seen: list[Step] = []
    with noted() as said:
        finetune(
            network(residual),
            data(),
            settings(budget=None),
            loss=loss,
            folder=folder,
            on_step=seen.append,
            progress=False,
        )
    assert said[-1].endswith("at step 10; going back to step 5, and on from there at 0.5 of the learning rate")
    assert [step.step for step in seen] == [*range(1, 10), *range(6, 21)]
    assert [step.step for step in folder.history()] == list(range(1, 21))
    first, again = (step.learning_rate for step in seen if step.step == 6)
    assert again == first / 2


def test_a_run_without_a_picture_has_ended_all_the_same(residual: nn.Module, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    finetune(network(residual), data(), settings(epochs=1), folder=folder, progress=False)
    (folder.path / "plan.json").write_text("{")
    with pytest.warns(ConverterWarning, match=r"the run has no picture \(.*plan.json"):
        folder.finish()
    assert not folder.begun


def test_what_is_finite(residual: nn.Module, tmp_path: Path) -> None:
    start = network(residual)
    start.register_buffer("mask", torch.full((3,), -torch.inf))  # as attention has
    folder = RunFolder(tmp_path / "run")
    finetune(start, data(), settings(epochs=1), folder=folder, progress=False)
    assert folder.load()["step"] == 5
    with torch.no_grad():
        start.norm.weight[0] = torch.nan  # type: ignore[union-attr, index, operator]
    with pytest.raises(TrainingError, match="the network holds weights that are not finite; repair the checkpoint"):
        finetune(start, data(), settings(budget=None), progress=False)


def test_folders_that_do_not_fit(residual: nn.Module, tmp_path: Path) -> None:
    start, path = network(residual), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        finetune(start, data(), settings(), folder=RunFolder(path), on_step=stopping(2), progress=False)
    for config, train, message in (
        (
            settings(learning_rate=0.02),
            data(),
            r"run: its learning_rate was 0\.01, now it is 0\.02; go on",
        ),
        (settings(), DataLoader(Noisy(), 4), "run: its data was"),
    ):
        with pytest.raises(TrainingError, match=message):
            finetune(start, train, config, folder=RunFolder(path, resume=True), progress=False)
    with pytest.raises(TrainingError, match="run: holds a run that has not ended; go on with --resume"):
        RunFolder(path)
    strange = tmp_path / "photos"
    strange.mkdir()
    (strange / "holiday.jpg").write_text("sun")
    for resume in (True, False):
        with pytest.raises(TrainingError, match="photos: is no folder of a run"):
            RunFolder(strange, resume=resume, force=True)
    with pytest.raises(TrainingError, match="the folder around it does not exist"):
        RunFolder(tmp_path / "no" / "run")
    with pytest.raises(TrainingError, match="saving every 0 steps"):
        RunFolder(tmp_path / "new", every=0)
    (path / "mine.txt").write_text("keep")
    finetune(start, data(), settings(epochs=1), folder=RunFolder(path, force=True), progress=False)
    assert (path / "mine.txt").read_text() == "keep"
    assert json.loads((path / "config.json").read_text())["epochs"] == 1


def test_the_record_tells_all(residual: nn.Module, tmp_path: Path) -> None:
    start, folder = network(residual), RunFolder(tmp_path / "run", log="tensorboard")
    new = finetune(start, data(), settings(), evaluate_on=data(), folder=folder, progress=False)
    steps, ranks = folder.history(), {name: layer.rank for name, layer in low_rank_layers(start).items()}
    lines = trajectories(steps, ranks)
    assert {name: line[0][1] for name, line in lines.items()} == ranks
    assert {name: line[-1][1] for name, line in lines.items()} == {
        name: layer.rank for name, layer in low_rank_layers(new).items()
    }
    assert all(step.cut.jump is not None for step in steps if step.cut is not None)
    figure = draw(steps, ranks, "top-1")
    changed = sum(len(line) > 1 for line in lines.values())
    assert [len(part.lines) for part in figure.axes] == [changed, 1]
    assert list(figure.axes[1].lines[0].get_ydata()) == [step.score for step in steps if step.score is not None]
    folder.finish()
    assert (folder.path / "ranks.png").read_bytes()[:4] == b"\x89PNG"
    events = EventAccumulator(str(folder.path / "tracked" / "dprp")).Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([step.loss for step in steps])
    assert [event.step for event in events.Scalars("score")] == [5, 10, 15, 20]
    assert sum(tag.startswith("rank/") for tag in events.Tags()["scalars"]) == changed


def test_a_tracker_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match="log 'paper' is not one of tensorboard, wandb"):
        RunFolder(tmp_path / "run", log="paper")
    monkeypatch.setitem(TRACKERS, "wandb", lambda: False)
    with pytest.raises(TrainingError, match="log wandb needs the package wandb, which is not installed; pip install"):
        RunFolder(tmp_path / "run", log="wandb")
