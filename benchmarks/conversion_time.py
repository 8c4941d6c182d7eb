"""Seconds and memory of calibration, sensitivity, planning and conversion.

    python benchmarks/conversion_time.py resnet18 [--images 64] [--budget 0.5]

Random weights and noise for images: neither changes the work.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch

from dprp.converter import MacBudget, Sensitivity, calibrate, convert, plan_ranks, sensitivities, survey
from dprp.models import build, info


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--budget", type=float, default=0.5)
    arguments = parser.parse_args()
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
    lost = sensitivities(model, layers, calibration, Sensitivity.MIXED)
    lap("sensitivities")
    plan = plan_ranks(layers, MacBudget(arguments.budget), energies=calibration.energies, distortions=lost)
    convert(model, plan, calibration=calibration)
    lap("planned and converted")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
