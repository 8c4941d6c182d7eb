"""Seconds and memory of calibration, foretelling, plans on trial and conversion, as `dprp convert` does them.

    python benchmarks/conversion_time.py resnet18 [--images 64] [--budget 0.5]

Random weights and noise for images: neither changes the work.
"""

from __future__ import annotations

import argparse
import resource
import time
from functools import partial

import torch

from dprp.converter import (
    MacBudget,
    calibrate,
    convert,
    foretell,
    keep_freed_memory,
    plan_ranks,
    survey,
)
from dprp.converter.conversion.candidates import best_plan
from dprp.converter.conversion.choosing import usual_trials
from dprp.models import build, info


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--budget", type=float, default=0.5)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    model = build(arguments.model)
    shape = info(arguments.model).input_shape
    assert shape is not None
    images = torch.randn(arguments.images, *shape)
    start = time.perf_counter()

    def lap(what: str) -> None:
        print(f"{time.perf_counter() - start:7.1f} s  {what}", flush=True)

    layers = survey(model, images[:1])
    calibration = calibrate(model, layers, images)
    lap(f"calibrated on {len(calibration.images)} images")
    losses = foretell(model, layers, calibration)
    lap("losses foretold")
    to_plan = partial(plan_ranks, layers, MacBudget(arguments.budget), energies=losses.errors)
    trials = usual_trials(layers.macs, len(calibration.images))
    plan, _ = best_plan(model, losses, calibration, lambda way: to_plan(distortions=way), trials=trials)
    lap(f"plan chosen, of {trials} at most")
    convert(model, plan, calibration=calibration)
    lap("converted")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
