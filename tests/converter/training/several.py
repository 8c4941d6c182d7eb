"""What each of several processes does.

    torchrun --standalone --nproc-per-node 2 -m tests.converter.training.several DIR

Trains a small network, and writes what came of it to DIR; with --die-after N the run stops there, and goes on with
--resume.
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dprp.converter import (
    FinetuneConfig,
    MacBudget,
    RankPenalty,
    RankRatio,
    RunFolder,
    Step,
    convert,
    evaluate,
    finetune,
    plan_ranks,
    survey,
)
from dprp.converter.conversion.attached import low_rank_layers


def images(count: int) -> TensorDataset:
    """Pictures of ten kinds, and which kind."""
    generator = torch.Generator().manual_seed(5)
    kinds = torch.randn(10, 1, 8, 8, generator=generator)
    labels = torch.arange(count) % 10
    return TensorDataset(kinds[labels] + 0.5 * torch.randn(count, 1, 8, 8, generator=generator), labels)


def data(count: int = 96, *, shuffle: bool = True) -> DataLoader[tuple[Tensor, Tensor]]:
    """In batches of eight."""
    return DataLoader(images(count), 8, shuffle=shuffle, generator=torch.Generator().manual_seed(0))


def networks() -> tuple[nn.Module, nn.Module]:
    """Low rank, and dense."""
    torch.manual_seed(0)
    dense = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)),
    ).eval()
    return convert(dense, plan_ranks(survey(dense, torch.zeros(1, 1, 8, 8)), RankRatio(1.0))), dense


def config(processes: int) -> FinetuneConfig:
    """As many images a step, in however many processes."""
    return FinetuneConfig(
        epochs=3,
        budget=MacBudget(0.4),
        cuts=5,
        rank_multiple=1,
        rank_penalty=RankPenalty.FADE,
        matching=0.1,
        accumulate=4 // processes,
        cpu=True,
    )


def train(processes: int, folder: RunFolder | None = None, die_after: int | None = None) -> dict[str, object]:
    """A run, and what came of it."""
    start, dense = networks()
    steps: list[Step] = []

    def on_step(step: Step) -> None:
        steps.append(step)
        if step.step == die_after:
            os.kill(os.getpid(), signal.SIGINT)

    new = finetune(
        start,
        data(),
        config(processes),
        teacher=dense,
        evaluate_on=data(84, shuffle=False),  # no whole number of batches for each
        folder=folder,
        on_step=on_step,
        progress=False,
    )
    score = evaluate(new, data(84, shuffle=False)).top1
    return {
        "weights": new.state_dict(),
        "ranks": {name: layer.rank for name, layer in low_rank_layers(new).items()},
        "losses": [step.loss for step in steps],
        "scores": [step.score for step in steps if step.score is not None],
        "score": score,
    }


def main() -> None:
    """One process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--die-after", type=int)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    run = RunFolder(options.folder / "run", resume=options.resume, force=True) if rank == 0 else None
    try:
        done = train(count, run, options.die_after)
    except KeyboardInterrupt:
        return
    torch.save(done, options.folder / f"{rank}.pt")


if __name__ == "__main__":
    main()
