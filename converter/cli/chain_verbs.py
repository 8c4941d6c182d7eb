"""Command-line wiring of the whole chain: parse, call the verb, print."""

from __future__ import annotations

from pathlib import Path

from . import arguments as given
from .commands import command
from .console import show, working
from .recipes import running
from .values import numbers_from, shape_from


@command
def compress(
    model: given.Model,
    data: given.Data,
    budget: given.NeededBudget,
    epochs: given.Epochs,
    output: given.OutputFolder,
    checkpoint: given.Checkpoint = None,
    form: given.Forms = None,
    keep: given.Keep = None,
    rank_multiple: given.RankMultiple = 8,
    calibration_images: given.CalibrationImages = 2000,
    sensitivity: given.SensitivityKind = given.SensitivityName.BEST,
    polish: given.Polish = None,
    lr: given.LearningRate = 0.005,
    distill: given.Distill = 0.7,
    mixed_precision: given.MixedPrecision = given.PrecisionName.NO,
    batch_size: given.BatchSize = 128,
    augment: given.Augmentation = None,
    workers: given.Workers = 0,
    download: given.Download = False,
    input: given.Input = None,
    classes: given.Classes = None,
    mean: given.Mean = None,
    std: given.Std = None,
    random_weights: given.RandomWeights = False,
    threads: given.Threads = 1,
    force: given.Force = False,
    seed: given.Seed = 0,
    device: given.Device = given.DeviceName.AUTO,
    json: given.AsJson = False,
) -> None:
    """All of it: plan, convert, fine-tune, fuse, export, verify and time, into one folder."""
    with working():
        from .compress import compress as verb

        answer = verb(
            model,
            data=data,
            budget=budget,
            epochs=epochs,
            output=output,
            checkpoint=checkpoint,
            forms=[name.value for name in form or ()],
            keep=keep or (),
            rank_multiple=rank_multiple,
            calibration_images=calibration_images,
            sensitivity=sensitivity.value,
            polish=polish,
            batch_size=batch_size,
            learning_rate=lr,
            distill=distill,
            augment=None if augment is None else augment.value,
            mixed_precision=mixed_precision.value,
            workers=workers,
            threads=threads,
            classes=classes,
            input_shape=shape_from(input),
            mean=numbers_from("--mean", mean),
            std=numbers_from("--std", std),
            random_weights=random_weights,
            download=download,
            force=force,
            seed=seed,
            device=device.value,
            recipe=running.get(),
        )
    show(answer, as_json=json)


@command
def demo(
    output: given.OutputFolder = Path("dprp-demo"),
    seed: given.Seed = 0,
    device: given.Device = given.DeviceName.AUTO,
    json: given.AsJson = False,
) -> None:
    """Compress a small CNN on scikit-learn's digits, in a minute."""
    with working():
        from .demo import demo as verb

        answer = verb(output=output, seed=seed, device=device.value, recipe=running.get())
    show(answer, as_json=json)
