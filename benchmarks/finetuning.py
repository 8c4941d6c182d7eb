"""Fine-tuning under a budget, from one and the same converted network, in several ways.

    python benchmarks/finetuning.py cifar_resnet20 ../shared/data/checkpoints/resnet20.th npz:cifar10.npz \
        --budget 0.3 --epochs 3 --images 25000 --penalties none hoyer:0.02 tail:0.1 proximal:0.01 fade --seeds 0 1

Prints top-1 of the dense network and after conversion, then one line a penalty (its name and, after a colon, its
weight) and seed: top-1 after each epoch, the jumps of the task loss at the cuts, seconds a step. --fixed starts at
the planned ranks, which then stay; --polish STEPS trains these without labels first, on 1,600 of the images, judged
by the others; --dense trains the dense network in the same way, to stand beside.
"""

from __future__ import annotations

import argparse
import itertools
import time
from functools import partial

import torch
from torch import nn
from torch.utils.data import Subset

from dprp.converter import (
    FinetuneConfig,
    MacBudget,
    OptimizerKind,
    PolishConfig,
    RankPenalty,
    Step,
    calibrate,
    convert,
    evaluate,
    finetune,
    foretell,
    headroom,
    input_moments,
    plan_ranks,
    polish,
    survey,
)
from dprp.converter.conversion.candidates import best_plan
from dprp.converter.conversion.choosing import usual_trials
from dprp.models import Augment, build, info, load_data, load_weights, loader, preprocess_for


def main() -> None:
    arguments = _parser().parse_args()
    model = build(arguments.model)
    load_weights(model, arguments.checkpoint)
    preprocess = preprocess_for(info(arguments.model))
    data = load_data(arguments.data)
    test = loader(data.test(preprocess), 250)
    plain = data.train(preprocess, Augment.NONE)
    images = torch.cat([batch[0] for batch in loader(plain, 128, limit=arguments.calibration, seed=0)])
    print(f"dense {evaluate(model, test)}", flush=True)
    start, moments, budget = model, None, MacBudget(arguments.budget)
    layers = survey(model, images[:1])
    if arguments.dense:
        start = convert(model, plan_ranks(layers, MacBudget(1.0), keep=["*"]))
    else:
        calibration = calibrate(model, layers, images, images=len(images))
        losses = foretell(model, layers, calibration)
        trials = usual_trials(layers.macs, len(calibration.images))
        to_plan = partial(plan_ranks, layers, budget, energies=losses.errors)
        plan, _ = best_plan(model, losses, calibration, lambda way: to_plan(distortions=way), trials=trials)
        print(f"converted {evaluate(convert(model, plan, calibration=calibration), test)}", flush=True)
        start = convert(model, plan if arguments.fixed else headroom(plan), calibration=calibration)
        if arguments.polish:
            fitted, judges = images[:1600], images[1600:]
            polish(start, model, fitted, PolishConfig(steps=arguments.polish), held_out=judges)
            print(f"polished {evaluate(start, test)}", flush=True)
        moments = input_moments(start, images)
    for penalty, seed in itertools.product(arguments.penalties, arguments.seeds):
        kind, _, weight = penalty.partition(":")
        config = FinetuneConfig(
            epochs=arguments.epochs,
            budget=None if arguments.dense or arguments.fixed else budget,
            learning_rate=arguments.rate,
            optimizer=arguments.optimizer,
            distill=arguments.distill,
            matching=0.0 if arguments.dense else arguments.matching,
            orthogonality=arguments.orthogonality,
            train_norms=not arguments.keep_norms,
            rank_penalty=RankPenalty(kind),
            rank=float(weight or 1.0),
            seed=seed,
        )
        every = data.train(preprocess, Augment.CROP_FLIP)
        some = every if arguments.images is None else Subset(every, range(arguments.images))  # type: ignore[arg-type]
        train = loader(some, arguments.batch, shuffle=True, seed=seed)  # type: ignore[arg-type]
        _run(f"{penalty} seed {seed}", start, train, config, test, model, moments)


def _run(
    name: str,
    start: nn.Module,
    train: object,
    config: FinetuneConfig,
    test: object,
    teacher: nn.Module,
    moments: object,
) -> None:
    steps: list[Step] = []
    began = time.perf_counter()
    finetune(
        start,
        train,  # type: ignore[arg-type]
        config,
        evaluate_on=test,  # type: ignore[arg-type]
        teacher=teacher,
        moments=moments,  # type: ignore[arg-type]
        on_step=steps.append,
        progress=False,
    )
    seconds = (time.perf_counter() - began) / len(steps)
    scores = " ".join(f"{step.score:.2f}" for step in steps if step.score is not None)
    jumps = " ".join(f"{step.cut.jump:.2f}" for step in steps if step.cut is not None and step.cut.jump is not None)
    print(f"{name}: top-1 {scores}  jumps {jumps or '-'}  {seconds:.3f} s a step", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, help="to train on; all without")
    parser.add_argument("--calibration", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--penalties", nargs="+", default=["none"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rate", type=float, default=FinetuneConfig.learning_rate)
    parser.add_argument(
        "--optimizer", type=OptimizerKind, choices=list(OptimizerKind), default=FinetuneConfig.optimizer
    )
    parser.add_argument("--distill", type=float, default=FinetuneConfig.distill)
    parser.add_argument("--matching", type=float, default=FinetuneConfig.matching)
    parser.add_argument("--orthogonality", type=float, default=FinetuneConfig.orthogonality)
    parser.add_argument("--fixed", action="store_true")
    parser.add_argument("--polish", type=int, default=0, metavar="STEPS")
    parser.add_argument("--keep-norms", action="store_true", help="BatchNorms keep their statistics")
    parser.add_argument("--dense", action="store_true")
    return parser


if __name__ == "__main__":
    main()
