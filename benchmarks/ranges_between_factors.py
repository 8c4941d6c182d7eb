"""8 bits: how far shall the ranges of channels between two factors be drawn together?

    python benchmarks/ranges_between_factors.py r20/compressed.onnx npz:cifar10.npz

Draws the ranges in a file a part of the way to equal ones on training images, makes files of 8 bits of it for several
CPUs, and prints how far their answers are from those in float32 on test images.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from dprp.converter.chain.data import Batches
from dprp.converter.chain.metadata import onnx_preprocess
from dprp.export import Target, quantize
from dprp.export.cpu_targets import Recipe
from dprp.export.session import infer, open_session
from dprp.models import load_data

TARGETS = (Target.X86_VNNI, Target.X86, Target.ARM)


def answers(file: Path, batches: list[Tensor]) -> Tensor:
    """Scores of an ONNX file, (N, classes)."""
    session = open_session(file)
    return torch.cat([torch.from_numpy(infer(session, [batch.numpy()], str(file))[0]) for batch in batches])


def told(file: Path, part: float, ranged: list[Tensor], test: list[Tensor], folder: Path) -> list[str]:
    """For each target, nats of divergence and the part of equal answers."""
    rounded, expected = folder / "rounded.onnx", answers(file, test)
    found = []
    for target in TARGETS:
        with mock.patch.object(Recipe, "drawn", part):
            quantize(file, rounded, ranged, target=target, force=True)
        given = answers(rounded, test)
        logs = [scores.log_softmax(1) for scores in (given, expected)]
        away = float(F.kl_div(*logs, reduction="batchmean", log_target=True))
        found.append(f"{away:.5f} ({100 * float((given.argmax(1) == expected.argmax(1)).float().mean()):.2f} %)")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a low-rank .onnx in float32, of dprp")
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=256, help="to find ranges on")
    parser.add_argument("--test-images", type=int, default=5000)
    parser.add_argument("--parts", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.75, 1.0])
    asked = parser.parse_args()
    preprocess, _ = onnx_preprocess(asked.file, None, None, None)
    batches = Batches(load_data(asked.data), preprocess, 128)
    ranged = list(torch.cat([images for images, _ in batches.calibration(asked.images)])[: asked.images].split(128))
    test = [images for images, _ in batches.test(asked.test_images)]
    print("nats from the answers in float32 (the same answer)")
    print("part of the way  " + "  ".join(f"{target!s:>18}" for target in TARGETS))
    with tempfile.TemporaryDirectory() as folder:
        for part in asked.parts:
            found = told(asked.file, part, ranged, test, Path(folder))
            print(f"{part:>15.2f}  " + "  ".join(f"{text:>18}" for text in found), flush=True)


if __name__ == "__main__":
    main()
