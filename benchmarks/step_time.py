"""Seconds of a training step, dense against low rank: at full rank and at half the MACs, in turns.

    python benchmarks/step_time.py cifar_resnet20 --batch 128 [--rounds 10] [--precision bf16]

Noise for images and random weights: neither changes the work. Low-rank steps include their penalties. Prints medians
and their ratios to the dense step; on a GPU the clock waits for it.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from dprp.converter import (
    FinetuneConfig,
    MacBudget,
    RankRatio,
    Step,
    convert,
    finetune,
    keep_freed_memory,
    plan_ranks,
    survey,
)
from dprp.models import build, info

_WARM = 3
_STEPS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="no")
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command line does
    torch.manual_seed(0)
    model = build(arguments.model)
    shape = info(arguments.model).input_shape
    assert shape is not None
    batch = (torch.randn(arguments.batch, *shape), torch.randint(10, (arguments.batch,)))
    layers = survey(model, batch[0][:1])
    networks = {
        "dense": convert(model, plan_ranks(layers, MacBudget(1.0), keep=["*"])),
        "full rank": convert(model, plan_ranks(layers, RankRatio(1.0))),
        "half the MACs": convert(model, plan_ranks(layers, MacBudget(0.5))),
    }
    config = FinetuneConfig(epochs=1, mixed_precision=arguments.precision)
    times: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(arguments.rounds):
        for name, network in networks.items():
            ends: list[float] = []

            def stop(_step: Step, ends: list[float] = ends) -> None:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                ends.append(time.perf_counter())

            finetune(network, [batch] * (_WARM + _STEPS), config, on_step=stop, progress=False)
            times[name] += [after - before for before, after in zip(ends[_WARM:], ends[_WARM + 1 :], strict=False)]
    dense = statistics.median(times["dense"])
    for name, found in times.items():
        median = statistics.median(found)
        print(f"{name:14} {1000 * median:8.1f} ms  {median / dense:.2f} x dense")


if __name__ == "__main__":
    main()
