"""Top-1 right after conversion, with no training: plans and fits on calibration images, scores on test images.

    python benchmarks/no_finetuning.py cifar_resnet20 ../shared/data/checkpoints/resnet20.th npz:cifar10.npz \
        --budgets 0.75 0.5 0.35

Prints one line a budget: top-1 of what `dprp convert --calibrate` makes and, in brackets, how far its answers are
from the dense network's on up to 1,000 of the test images; the same after polishing, of plain SVD, and of fits
to other numbers of views, where asked for. Seconds are those of calibration, planning and conversion together.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from dprp.converter import (
    Calibration,
    Losses,
    MacBudget,
    Plan,
    PolishConfig,
    Sensitivity,
    Survey,
    Unit,
    calibrate,
    convert,
    evaluate,
    foretell,
    keep_freed_memory,
    plan_ranks,
    polish,
    survey,
)
from dprp.converter.analysis.agreement import agreement
from dprp.converter.analysis.held_out import hold_out
from dprp.converter.conversion.candidates import best_plan
from dprp.converter.conversion.choosing import usual_trials
from dprp.converter.conversion.polishing import usual_steps
from dprp.models import Augment, build, info, load_data, load_weights, loader, preprocess_for


def main() -> None:
    keep_freed_memory()  # as the command line does
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.75, 0.5, 0.35])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rank-multiple", type=int)
    parser.add_argument("--sensitivity", type=Sensitivity, choices=list(Sensitivity), default=Sensitivity.BEST)
    parser.add_argument("--trials", type=int, help="plans to try; as many as suit without")
    parser.add_argument("--sample", type=int, help="seed of the choice of calibration images; the first ones without")
    parser.add_argument("--polish", type=int, nargs="?", const=-1, help="steps of polishing; alone, the usual number")
    parser.add_argument("--rate", type=float, help="of polishing; what suits the images without")
    parser.add_argument("--plain", action="store_true", help="score plain SVD, too")
    parser.add_argument(
        "--views", type=int, nargs="+", default=[], help="score fits to so many views of each image, too"
    )
    arguments = parser.parse_args()
    model = build(arguments.model)
    load_weights(model, arguments.checkpoint)
    preprocess = preprocess_for(info(arguments.model))
    data = load_data(arguments.data)
    train = _sample(loader(data.train(preprocess, Augment.NONE), 128), arguments.images, arguments.sample)
    test = loader(data.test(preprocess), 250)
    layers = survey(model, torch.zeros(1, *preprocess.input_shape))
    print(f"{arguments.model}: dense {evaluate(model, test)}")
    for budget in arguments.budgets:
        start = time.perf_counter()
        calibration = calibrate(model, layers, train, images=arguments.images)
        losses = foretell(model, layers, calibration)
        plan = _planned(model, layers, losses, calibration, budget, arguments)
        judges = None
        if arguments.polish:
            images, judges = hold_out(calibration.images)
            calibration = replace(calibration, images=images)
        converted = convert(model, plan, calibration=calibration)
        seconds = time.perf_counter() - start
        line = f"{budget:5.2f} of MACs ({plan.fraction(Unit.MACS):.4f}): {_scored(converted, model, test)}"
        if judges is not None:
            start = time.perf_counter()
            config = PolishConfig(
                steps=usual_steps(model, calibration.images) if arguments.polish < 0 else arguments.polish,
                rate=arguments.rate,
            )
            found = polish(converted, model, calibration.images, config, held_out=judges)
            took = time.perf_counter() - start
            steps = f"{found.kept} of {found.steps} steps"
            line += f"  polished {_scored(converted, model, test)} ({steps}, {took:.1f} s)"
        if arguments.plain:
            plain = plan_ranks(layers, MacBudget(budget), rank_multiple=arguments.rank_multiple)
            line += f"  plain SVD {evaluate(convert(model, plain), test).top1:6.2f} %"
        for views in arguments.views:
            fitted = convert(model, plan, calibration=calibration, views=views)
            line += f"  {views} views {_scored(fitted, model, test)}"
        print(f"{line}  {seconds:6.1f} s  {len(calibration.images)} images", flush=True)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def _planned(
    model: nn.Module,
    layers: Survey,
    losses: Losses,
    calibration: Calibration,
    budget: float,
    arguments: argparse.Namespace,
) -> Plan:
    to_plan = partial(
        plan_ranks, layers, MacBudget(budget), energies=losses.errors, rank_multiple=arguments.rank_multiple
    )
    if arguments.sensitivity is not Sensitivity.BEST:
        return to_plan(distortions=losses.distortions(arguments.sensitivity))
    trials = arguments.trials or usual_trials(layers.macs, len(calibration.images))
    return best_plan(model, losses, calibration, lambda way: to_plan(distortions=way), trials=trials).plan


def _scored(converted: nn.Module, dense: nn.Module, test: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> str:
    """Top-1, and how far the answers are from the dense network's: far less left to chance on few images."""
    images = torch.cat([batch[0] for batch in itertools.islice(test, 4)])
    return f"{evaluate(converted, test).top1:6.2f} % ({agreement(converted, dense, images).nats:.4f} nats)"


def _sample(batches: Iterable[tuple[torch.Tensor, ...]], count: int, seed: int | None) -> torch.Tensor:
    """Calibration images: the first ones, or a choice of them."""
    images = torch.cat([batch[0] for batch in batches])
    if seed is None:
        return images[:count]
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]]


if __name__ == "__main__":
    main()
