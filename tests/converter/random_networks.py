"""Random small networks, and what must hold for every one of them.

    python -m tests.converter.random_networks --seconds 600      # from the root of the repository

stops at the first seed that breaks a promise and names it; `check(seed)` runs that one again.
"""

from __future__ import annotations

import argparse
import copy
import random
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dprp.converter import (
    BudgetError,
    ConverterWarning,
    Form,
    MacBudget,
    RankRatio,
    Source,
    Unit,
    calibrate,
    convert,
    fuse,
    load_compressed,
    plan_ranks,
    save_compressed,
    survey,
)
from dprp.export import onnx_macs, to_onnx

from .random_modules import EncoderDecoder, RandomNet

_AXES = {1: (40,), 2: (12, 12), 3: (6, 10, 10)}
"""Of the inputs: sound, images and videos."""


def untrained(seed: int) -> nn.Module:
    """The network of a seed with other weights."""
    torch.manual_seed(seed + 1)
    return drawn(seed).eval()


def drawn(seed: int) -> nn.Module:
    """One in three goes up and down again."""
    return (EncoderDecoder if seed % 3 == 2 else RandomNet)(random.Random(seed))


def network(seed: int) -> nn.Module:
    """The network of a seed, with statistics unlike those of a fresh one."""
    torch.manual_seed(seed)
    model = drawn(seed)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2.0)
                nn.init.normal_(module.bias)
    return model.eval()


@torch.no_grad()
def check(seed: int, *, onnx: bool = True) -> None:
    """Every promise, for one network. Raises AssertionError, or whatever breaks.

    Args:
        seed: of the network and of what is done with it.
        onnx: export it too, which takes a second.
    """
    draw = random.Random(seed + 1)
    model = network(seed)
    sizes = _AXES[model.axes]
    x = torch.randn(6, 3, *sizes)
    dense = model(x)
    before = copy.deepcopy(model.state_dict())
    layers = survey(model, x)
    assert layers.macs == _counted_macs(model, x[:1]), "MACs of the dense network"

    forms = draw.sample(list(Form), draw.randint(1, 3))
    calibration = calibrate(model, layers, x) if draw.random() < 0.5 else None
    energies = None if calibration is None else calibration.energies
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConverterWarning)  # Constant has a layer that no image reaches
        full = plan_ranks(layers, RankRatio(1.0), forms=forms, energies=energies)
        _close(convert(model, full, calibration=calibration)(x), dense, "full rank is the dense network")

        budget = draw.uniform(0.4, 0.95)
        multiple = draw.choice([1, 2, 4])
        try:
            plan = plan_ranks(layers, MacBudget(budget), forms=forms, rank_multiple=multiple, energies=energies)
        except BudgetError:
            plan = plan_ranks(layers, RankRatio(0.3), forms=forms, energies=energies)
        else:
            assert plan.fraction(Unit.MACS) <= budget, "the plan is within its budget"
        small = convert(model, plan, calibration=calibration)
    assert survey(small, x).macs == plan.total(Unit.MACS), "MACs of the converted network"
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items()), "untouched"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in small.modules())

    fused = fuse(small)
    _close(fused(x), small(x), "fused is unfused")
    assert _counted_macs(fused, x[:1]) <= plan.total(Unit.MACS), "MACs of the fused network"
    half = fuse(copy.deepcopy(small).to(torch.bfloat16))(x.to(torch.bfloat16))
    _close(half.float(), small(x), "bfloat16 is float32", tolerance=0.1)

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "small.safetensors"
        save_compressed(small, Source("own:net", None, (3, *sizes), (0.5,) * 3, (0.5,) * 3), file)
        loaded = load_compressed(file, lambda _source: untrained(seed), trust="own:net").model
        assert torch.equal(loaded(x), small(x)), "loaded is saved"
        if onnx:
            to_onnx(fused, x[:2], Path(folder) / "small.onnx")  # raises where outputs differ
            macs = onnx_macs(Path(folder) / "small.onnx")
            same = (
                macs == survey(fused, x).macs if isinstance(model, EncoderDecoder) else macs <= survey(fused, x).macs
            )
            assert same, "MACs of the file"  # what does not depend on the input has been computed in it


def _counted_macs(model: nn.Module, x: Tensor) -> int:
    """By torch's own counter, which sees the operations and nothing of the modules."""
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() // 2


def _close(ours: Tensor, theirs: Tensor, what: str, tolerance: float = 1e-3) -> None:
    off = float((ours - theirs).abs().max() / theirs.abs().max())
    assert off <= tolerance, f"{what}: off by {off:.2g}"


def main() -> None:
    """Seed after seed, for as long as one asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--start", type=int, default=0, help="first seed")
    arguments = parser.parse_args()
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    end, seed = time.monotonic() + arguments.seconds, arguments.start
    while time.monotonic() < end:
        try:
            check(seed)
        except BaseException:
            print(f"seed {seed}")
            raise
        seed += 1
    print(f"{seed - arguments.start} networks, every promise kept")


if __name__ == "__main__":
    main()
