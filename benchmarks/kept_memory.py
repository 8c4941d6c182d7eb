"""Milliseconds an image of a forward pass, where freed memory goes back to the system and where it is kept.

    python benchmarks/kept_memory.py mobilenet_v2 [--images 96]

Random weights and noise for images. The setting is of a whole process, so that each has one of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import torch

from dprp.converter import keep_freed_memory
from dprp.models import build, info

BATCHES = (4, 16, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--kept", choices=["no", "yes"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kept is None:
        print("images at a time", *BATCHES)
        for kept in ("no", "yes"):
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--kept", kept], check=True)
        return
    if arguments.kept == "yes":
        keep_freed_memory()
    model, shape = build(arguments.model).eval(), info(arguments.model).input_shape
    assert shape is not None
    times = [_milliseconds(model, torch.randn(batch, *shape), arguments.images) for batch in BATCHES]
    print("kept" if arguments.kept == "yes" else "given back", *(f"{each:.1f}" for each in times), flush=True)


@torch.no_grad()
def _milliseconds(model: torch.nn.Module, batch: torch.Tensor, images: int) -> float:
    """An image, over at least so many, after one batch to warm up."""
    model(batch)
    rounds = -(-images // len(batch))
    start = time.perf_counter()
    for _ in range(rounds):
        model(batch)
    return 1e3 * (time.perf_counter() - start) / (rounds * len(batch))


if __name__ == "__main__":
    main()
