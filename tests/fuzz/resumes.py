"""Runs that are killed and go on: python -m tests.fuzz.resumes --times 20 [--seed 0].

A small network is trained while its ranks fall, and killed (SIGKILL) at random moments: after a step, or at one of
the system calls by which a state is saved. It goes on, is killed again, and so on until it ends. The weights, the
ranks and the record must be those of a run that nothing happened to, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dprp.converter import (
    FinetuneConfig,
    MacBudget,
    RankRatio,
    RunFolder,
    Step,
    convert,
    finetune,
    plan_ranks,
    survey,
)

STEPS = 21
_DISK = ("fsync", "replace", "rename", "open", "close")


class Noisy(Dataset[tuple[Tensor, int]]):
    """Pictures of ten kinds, with new noise at each look."""

    def __len__(self) -> int:
        return 56

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        kind = torch.linspace(-1, 1, 64).roll(7 * (index % 10)).view(1, 8, 8)
        return kind + 0.3 * torch.randn(1, 8, 8), index % 10


def data() -> DataLoader[tuple[Tensor, int]]:
    """Seven batches."""
    return DataLoader(Noisy(), 8, shuffle=True, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    """Two convolutions and a dense layer, all factored."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.1)),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)),
    )
    return convert(model.eval(), plan_ranks(survey(model, torch.zeros(1, 1, 8, 8)), RankRatio(1.0)))


def config() -> FinetuneConfig:
    """Cuts from the second step to the last but three."""
    return FinetuneConfig(
        epochs=3, budget=MacBudget(0.4), cuts=9, prune_until=0.85, rank_multiple=1, average=0.5, cpu=True
    )


def train(folder: RunFolder, on_step: Callable[[Step], None] | None = None) -> nn.Module:
    """All of a run, or the rest of it."""
    return finetune(network(), data(), config(), folder=folder, on_step=on_step, progress=False)


def die_at(call: int) -> None:
    """Kills this process at its so-manieth call by which files come to be."""
    calls = [0]

    def counted(of: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*given: Any, **more: Any) -> Any:
            calls[0] += 1
            if calls[0] == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return of(*given, **more)

        return counting

    for name in _DISK:
        setattr(os, name, counted(getattr(os, name)))
    torch.save = counted(torch.save)


def child(path: Path, result: Path, random: Random, every: int) -> int:
    """One life of the run, in a process of its own: 0 when it came to its end."""
    seed = random.random()
    process = os.fork()
    if process:
        return os.waitpid(process, 0)[1]
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        own = Random(seed)
        begun = (path / "state.pt").exists() or (path / "before.pt").exists()
        folder = RunFolder(path, resume=begun, every=every, force=True)
        left = own.randint(1, 12)
        if own.random() < 0.6:
            die_at(own.randint(1, 80))
            left = STEPS + 1

        def on_step(_step: Step) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        model = train(folder, on_step)
        torch.save({"weights": model.state_dict(), "steps": [step.to_dict() for step in folder.history()]}, result)
        code = 0
    finally:
        os._exit(code)


def main() -> int:
    """1 where a run that was killed ended otherwise than one that was not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20, help="runs, each killed several times")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random = Random(options.seed)
    torch.set_num_threads(1)
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        whole = RunFolder(Path(name) / "whole")
        wanted = train(whole).state_dict()
        record = [step.to_dict() for step in whole.history()]
        cuts = sum(Step.from_dict(step).cut is not None for step in record)
        kills: Counter[str] = Counter()
        for turn in range(options.times):
            path, result = Path(name) / f"run{turn}", Path(name) / f"{turn}.pt"
            every, lives = random.choice((1, 2, 5)), 1
            while child(path, result, random, every) != 0:
                lives += 1
                saved = sorted(file.name for file in path.iterdir()) if path.exists() else []
                kills["while saving" if any("dprp-" in file for file in saved) else "between"] += 1
                if lives > 100:
                    print(f"turn {turn}: does not end; {saved}", flush=True)
                    return 1
            found = torch.load(result, weights_only=True)
            same = found["steps"] == record and all(torch.equal(found["weights"][key], wanted[key]) for key in wanted)
            left = [file.name for file in path.iterdir() if "dprp-" in file.name]
            if not same or left:
                bad += 1
                print(f"turn {turn}: {'other weights or another record' if not same else f'left {left}'}", flush=True)
        told = ", ".join(f"{count} times {when}" for when, count in sorted(kills.items()))
    print(f"{options.times} runs of {STEPS} steps with {cuts} cuts, killed {told}")
    print(f"{bad} of them ended otherwise than one that nothing happened to")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
