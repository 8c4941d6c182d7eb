"""Latency plans against what they foretold, and against the MAC plan of equal predicted error.

    python benchmarks/latency_plan.py [--model resnet18] [--budgets 0.7 0.5] [--threads 1]

Random weights: time does not depend on them, and errors are compared between plans of the same network.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from dprp.converter import LatencyBudget, MacBudget, Plan, Unit, convert, fuse, plan_ranks, survey
from dprp.converter.chain.network import open_network
from dprp.converter.chain.times import time_layers
from dprp.export import benchmark, to_onnx


def error(plan: Plan) -> float:
    """What the planner minimised."""
    return sum(layer.error or 0.0 for layer in plan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.7, 0.5])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    network = open_network(arguments.model, random_weights=True)
    example = network.example()
    layers = survey(network.model, example)
    plans: list[tuple[str, Plan]] = []
    times = time_layers(network, layers, rank_multiple=8, threads=arguments.threads)
    for budget in arguments.budgets:
        plan = plan_ranks(layers, LatencyBudget(budget), times=times)
        plans.append((f"latency={budget:g}", plan))
        low, high = 0.05, 1.0  # a smaller budget has a larger error
        for _ in range(12):
            middle = (low + high) / 2
            rival = plan_ranks(layers, MacBudget(middle))
            low, high = (middle, high) if error(rival) > error(plan) else (low, middle)
        plans.append((f"macs={high:.3f}, equal error", plan_ranks(layers, MacBudget(high))))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{index}.onnx" for index in range(len(plans) + 1)]
        to_onnx(network.model, example, files[0])
        for file, (_, plan) in zip(files[1:], plans, strict=True):
            to_onnx(fuse(convert(network.model, plan)), example, file)
        result = benchmark(files, threads=arguments.threads)
    dense = result.files[0]
    print(f"dense: foretold {times.network_ms:.2f} ms, measured {dense.median_ms:.2f} ms")
    for (name, plan), timed in zip(plans, result.files[1:], strict=True):
        foretold = (
            "" if plan.ms is None else f", foretold {plan.ms:.2f} ms = {plan.ms / times.network_ms:.3f} of dense"
        )
        print(
            f"{name:24} {timed.median_ms:7.2f} ms = {1 / timed.speedup:.3f} of dense{foretold}; "
            f"{plan.fraction(Unit.MACS):.3f} of MACs, error {error(plan):.3f}"
        )
    print(result)


if __name__ == "__main__":
    main()
