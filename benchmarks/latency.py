"""Latency of each form in ONNX Runtime: dense against compressed, interleaved in one run.

    python benchmarks/latency.py [--model cifar_resnet20] [--budgets 0.5 0.25] [--multiples 8 16] [--threads 1]

Weights do not matter for time, so none are needed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from dprp.converter import Form, MacBudget, Unit, convert, fuse, plan_ranks, survey
from dprp.export import benchmark, to_onnx
from dprp.models import build, info


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="cifar_resnet20")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.25])
    parser.add_argument("--multiples", type=int, nargs="+", default=[8])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = build(arguments.model)
    shape = info(arguments.model).input_shape
    assert shape is not None
    example = torch.randn(1, *shape)
    layers = survey(model, example)
    forms = {"channel": [Form.CHANNEL], "pointwise": [Form.POINTWISE], "spatial": [Form.SPATIAL], "any": list(Form)}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "dense.onnx"]
        to_onnx(model, example, files[0])
        labels = ["dense"]
        for budget in arguments.budgets:
            for name, allowed in forms.items():
                for multiple in arguments.multiples:
                    plan = plan_ranks(layers, MacBudget(budget), forms=allowed, rank_multiple=multiple)
                    files.append(Path(folder) / f"{name}-{budget}-{multiple}.onnx")
                    to_onnx(fuse(convert(model, plan)), example, files[-1])
                    labels.append(f"{name}, multiples of {multiple}, {100 * plan.fraction(Unit.MACS):.1f} % of MACs")
        result = benchmark(files, threads=arguments.threads, rounds=arguments.rounds)
    print(result)
    for label, file in zip(labels, result.files, strict=True):
        print(f"{label:48} {file.median_ms:8.3f} ms  {result.files[0].median_ms / file.median_ms:5.2f} x")


if __name__ == "__main__":
    main()
