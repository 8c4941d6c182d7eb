"""Command-line wiring of the steps after conversion: parse, call the verb, print. Verbs load when called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from . import arguments as given
from .commands import command
from .console import show, working
from .values import numbers_from, shape_from


@command
def finetune(
    file: Annotated[Path, Argument(metavar="FILE", show_default=False, help="A compressed .safetensors.")],
    data: given.Data,
    epochs: given.Epochs,
    output: given.Output,
    budget: given.Budget = None,
    threshold: given.Threshold = None,
    rank_multiple: given.RankMultiple = 8,
    teacher: given.Teacher = None,
    trust: given.Trust = None,
    distill: given.Distill = 0.7,
    lr: given.LearningRate = 0.005,
    optimizer: given.Optimizer = given.OptimizerName.SGD,
    weight_decay: given.WeightDecay = 1e-4,
    orthogonality: given.Orthogonality = 1e-2,
    rank_loss: given.RankLoss = 1e-3,
    prune_until: given.PruneUntil = 0.5,
    mixed_precision: given.MixedPrecision = given.PrecisionName.NO,
    batch_size: given.BatchSize = 128,
    augment: given.Augmentation = None,
    workers: given.Workers = 0,
    download: given.Download = False,
    force: given.Force = False,
    seed: given.Seed = 0,
    device: given.Device = given.DeviceName.AUTO,
    json: given.AsJson = False,
) -> None:
    """Train a compressed checkpoint while its ranks shrink to a budget."""
    with working():
        from .finetune import finetune as verb

        answer = verb(
            file,
            data=data,
            epochs=epochs,
            output=output,
            budget=budget,
            threshold=threshold,
            teacher=teacher,
            trust=trust,
            batch_size=batch_size,
            learning_rate=lr,
            optimizer=optimizer.value,
            weight_decay=weight_decay,
            distill=distill,
            orthogonality=orthogonality,
            rank_loss=rank_loss,
            prune_until=prune_until,
            rank_multiple=rank_multiple,
            mixed_precision=mixed_precision.value,
            augment=None if augment is None else augment.value,
            workers=workers,
            download=download,
            force=force,
            seed=seed,
            device=device.value,
        )
    show(answer, as_json=json)


@command
def evaluate(
    model: given.AnyModel,
    data: given.Data,
    checkpoint: given.Checkpoint = None,
    limit: given.Limit = None,
    batch_size: given.BatchSize = 128,
    workers: given.Workers = 0,
    download: given.Download = False,
    input: given.Input = None,
    classes: given.Classes = None,
    mean: given.Mean = None,
    std: given.Std = None,
    random_weights: given.RandomWeights = False,
    trust: given.Trust = None,
    seed: given.Seed = 0,
    device: given.Device = given.DeviceName.AUTO,
    json: given.AsJson = False,
) -> None:
    """Count top-1 on the test images."""
    with working():
        from .evaluate import evaluate as verb

        answer = verb(
            model,
            data=data,
            checkpoint=checkpoint,
            limit=limit,
            batch_size=batch_size,
            classes=classes,
            input_shape=shape_from(input),
            mean=numbers_from("--mean", mean),
            std=numbers_from("--std", std),
            random_weights=random_weights,
            trust=trust,
            workers=workers,
            download=download,
            seed=seed,
            device=device.value,
        )
    show(answer, as_json=json)


@command
def export(
    model: given.AnyModel,
    output: given.Output,
    checkpoint: given.Checkpoint = None,
    tolerance: Annotated[
        float, Option(min=0.0, help="Largest accepted difference from torch, relative to the output's scale.")
    ] = 1e-4,
    input: given.Input = None,
    classes: given.Classes = None,
    mean: given.Mean = None,
    std: given.Std = None,
    random_weights: given.RandomWeights = False,
    trust: given.Trust = None,
    force: given.Force = False,
    seed: given.Seed = 0,
    device: given.Device = given.DeviceName.AUTO,
    json: given.AsJson = False,
) -> None:
    """Fuse into plain layers and write one ONNX file, compared with torch before it is kept."""
    with working():
        from .export import export as verb

        answer = verb(
            model,
            output=output,
            checkpoint=checkpoint,
            classes=classes,
            input_shape=shape_from(input),
            mean=numbers_from("--mean", mean),
            std=numbers_from("--std", std),
            random_weights=random_weights,
            trust=trust,
            tolerance=tolerance,
            force=force,
            seed=seed,
            device=device.value,
        )
    show(answer, as_json=json)


@command
def benchmark(
    files: Annotated[
        list[Path], Argument(metavar="FILE...", show_default=False, help="ONNX files; the first counts 1.")
    ],
    threads: given.Threads = 1,
    batch: Annotated[int, Option(min=1, help="Images in a run.")] = 1,
    rounds: Annotated[int, Option(min=1, help="Turns of each file.")] = 20,
    seed: Annotated[
        int, Option(rich_help_panel="Machine", help="Changes nothing here: times do not depend on it.")
    ] = 0,
    device: given.Device = given.DeviceName.AUTO,
    json: given.AsJson = False,
) -> None:
    """Time ONNX files against each other on the CPU, in turns."""
    with working():
        from .benchmark import benchmark as verb

        answer = verb(files, threads=threads, batch=batch, rounds=rounds, device=device.value)
    show(answer, as_json=json)


@command
def env(json: given.AsJson = False) -> None:
    """Versions, processor and GPUs: what a bug report needs."""
    with working():
        from .env import env as verb

        answer = verb()
    show(answer, as_json=json)
