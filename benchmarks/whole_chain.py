"""The whole chain for torchvision's classifiers, on noise: does a budget mean what it says, and is the file faster?

    python benchmarks/whole_chain.py vit_b_16 --budget 0.6
    python benchmarks/whole_chain.py r3d_18 --budget 0.5

Random weights, and noise for images: neither changes the work. Converts with 16 images, trains one step, fuses,
writes verified ONNX files and times them in turns. Prints the survey's MACs and the part of them that can be factored
beside those of `torch.utils.flop_counter`, before and after.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dprp.converter import (
    FinetuneConfig,
    MacBudget,
    Unit,
    calibrate,
    convert,
    finetune,
    fuse,
    plan_of,
    plan_ranks,
    survey,
)
from dprp.export import benchmark, to_onnx
from dprp.models import build, info


def built(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A classifier of images or of videos, and the shape of its input."""
    if name in torchvision.models.list_models(module=torchvision.models.video):
        weights = torchvision.models.get_model_weights(name).DEFAULT
        (size,) = weights.transforms().crop_size[:1]
        frames = weights.meta.get("min_temporal_size", 16)
        return torchvision.models.get_model(name, weights=None).eval(), (3, max(16, frames), size, size)
    shape = info(name).input_shape
    assert shape is not None
    return build(name).eval(), shape


def counted(model: nn.Module, image: Tensor) -> float:
    """Multiply-adds, by torch's own counter."""
    counter = FlopCounterMode(display=False)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused operations are not counted
    try:
        with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            model(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--budget", type=float, default=0.6)
    parser.add_argument("--images", type=int, default=16)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model, shape = built(arguments.model)
    images = torch.randn(arguments.images, *shape)
    layers, dense = survey(model, images[:1]), counted(model, images[:1])
    free = sum(layer.macs for layer in layers if layer.reason is None)
    print(f"survey {layers.macs:,} MACs, torch {dense:,.0f}: {layers.macs / dense:.4f}")
    print(f"{100 * free / dense:.2f} % of torch's can be factored", flush=True)
    began = time.perf_counter()
    calibration = calibrate(model, layers, images)
    plan = plan_ranks(layers, MacBudget(arguments.budget), energies=calibration.energies)
    low = convert(model, plan, calibration=calibration)
    print(f"converted in {time.perf_counter() - began:.0f} s", flush=True)
    batch = (images[:4], torch.arange(4))
    small = fuse(finetune(low, [batch], FinetuneConfig(epochs=1), teacher=model, progress=False))
    part = counted(small, images[:1]) / dense
    print(f"plan {plan_of(low).fraction(Unit.MACS):.4f} of the MACs, torch {part:.4f}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("dense.onnx", "small.onnx")]
        for network, file in zip((model, small), files, strict=True):
            print(f"{file.name}: {to_onnx(network, images[:1], file)}", flush=True)
        print(benchmark(files, threads=1))


if __name__ == "__main__":
    main()
