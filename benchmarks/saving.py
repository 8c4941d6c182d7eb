"""What it costs to be able to go on: time and disk of a run's folder.

    python benchmarks/saving.py resnet50 --budget 0.5 --batch 8 --steps 12

Noise for images and random weights: neither changes the work. Prints seconds of a step and of writing a state, the
share of the time that saving takes at the default interval, and the folder's size over that of the dense network's
checkpoint.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from dprp.converter import (
    FinetuneConfig,
    MacBudget,
    OptimizerKind,
    RunFolder,
    Step,
    convert,
    finetune,
    plan_ranks,
    survey,
)
from dprp.models import build, info


class Timed(RunFolder):
    """Knows how long each state took to write."""

    seconds: list[float]

    def save(self, state: dict[str, Any]) -> None:
        began = time.perf_counter()
        super().save(state)
        self.seconds.append(time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, help="steps between saves; the default interval without")
    parser.add_argument("--optimizer", type=OptimizerKind, choices=list(OptimizerKind), default=OptimizerKind.SGD)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = build(arguments.model)
    shape = info(arguments.model).input_shape
    assert shape is not None
    batch = (torch.randn(arguments.batch, *shape), torch.randint(10, (arguments.batch,)))
    start = convert(model, plan_ranks(survey(model, batch[0][:1]), MacBudget(arguments.budget)))
    ends: list[float] = []

    def stop(_step: Step) -> None:
        ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as name:
        torch.save(model.state_dict(), Path(name) / "dense.pt")
        folder = Timed(Path(name) / "run", every=arguments.every)
        folder.seconds = []
        config = FinetuneConfig(epochs=1, optimizer=arguments.optimizer)
        began = time.perf_counter()
        finetune(start, [batch] * arguments.steps, config, folder=folder, on_step=stop, progress=False)
        whole = time.perf_counter() - began
        dense = (Path(name) / "dense.pt").stat().st_size
        size = sum(file.stat().st_size for file in folder.path.iterdir())
        length = (folder.path / "history.jsonl").stat().st_size
    step = median(after - before for before, after in pairwise(ends))
    print(
        f"a step {step:.3f} s, a state {median(folder.seconds):.3f} s; {len(folder.seconds)} states in {whole:.0f} s"
    )
    print(f"saving took {100 * sum(folder.seconds) / whole:.2f} % of the time, the first and the last state included")
    print(f"the folder has {size / dense:.2f} x the {dense / 2**20:.1f} MiB of the dense checkpoint")
    print(f"history: {length / arguments.steps:.0f} bytes a step")


if __name__ == "__main__":
    main()
