"""Seconds and memory of calibration, foretelling, plans on trial and conversion, as `dprp convert` does them.

    python benchmarks/conversion_time.py resnet18 [--images 64] [--budget 0.5]

Random weights and noise for images: neither changes the work.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch

from dprp.converter import (
    MacBudget,
    calibrate,
    choose_plan,
    convert,
    foretell,
    keep_freed_memory,
    plan_ranks,
    survey,
)
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
    ways = losses.candidates(usual_trials(layers.macs, len(calibration.images)))
    budget = MacBudget(arguments.budget)
    plans = [plan_ranks(layers, budget, energies=losses.errors, distortions=way) for way in ways]
    plan = plans[choose_plan(model, plans, calibration)]
    lap(f"chosen among {len(plans)}")
    convert(model, plan, calibration=calibration)
    lap("converted")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
