"""Command-line wiring of survey, plan and convert: parse, call the verb, print. Verbs load when called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from . import arguments as given
from .commands import command
from .console import show, working
from .values import numbers_from, shape_from


@command
def survey(
    model: given.Model,
    checkpoint: given.Checkpoint = None,
    input: given.Input = None,
    classes: given.Classes = None,
    trust: given.Trust = None,
    seed: given.Seed = 0,
    device: given.Device = given.DeviceName.AUTO,
    json: given.AsJson = False,
) -> None:
    """List the layers: shapes, parameters, MACs, and how far each can be factored or why it stays."""
    with working():
        from .survey import survey as verb

        answer = verb(
            model,
            checkpoint=checkpoint,
            classes=classes,
            input_shape=shape_from(input),
            trust=trust,
            seed=seed,
            device=device.value,
        )
    show(answer, as_json=json)


@command
def plan(
    model: given.Model,
    output: given.OptionalOutput = None,
    checkpoint: given.Checkpoint = None,
    budget: given.Budget = None,
    ratio: given.Ratio = None,
    rank: given.Rank = None,
    energy: given.Energy = None,
    form: given.Forms = None,
    keep: given.Keep = None,
    rank_multiple: given.RankMultiple = 8,
    calibrate: given.Calibrate = None,
    calibration_images: given.CalibrationImages = 2000,
    sensitivity: given.SensitivityKind = given.SensitivityName.BEST,
    threads: given.Threads = 1,
    download: given.Download = False,
    input: given.Input = None,
    classes: given.Classes = None,
    mean: given.Mean = None,
    std: given.Std = None,
    random_weights: given.RandomWeights = False,
    force: given.Force = False,
    seed: given.Seed = 0,
    device: given.Device = given.DeviceName.AUTO,
    json: given.AsJson = False,
) -> None:
    """Show what each layer would become, without converting anything."""
    with working():
        from .plan import plan as verb

        answer = verb(
            model,
            output=output,
            checkpoint=checkpoint,
            budget=budget,
            ratio=ratio,
            rank=rank,
            energy=energy,
            forms=[name.value for name in form or ()],
            keep=keep or (),
            rank_multiple=rank_multiple,
            calibrate=calibrate,
            calibration_images=calibration_images,
            sensitivity=sensitivity.value,
            threads=threads,
            download=download,
            classes=classes,
            input_shape=shape_from(input),
            mean=numbers_from("--mean", mean),
            std=numbers_from("--std", std),
            random_weights=random_weights,
            force=force,
            seed=seed,
            device=device.value,
        )
    show(answer, as_json=json)


@command
def convert(
    model: given.Model,
    output: given.Output,
    checkpoint: given.Checkpoint = None,
    budget: given.Budget = None,
    plan: Annotated[
        Path | None, Option(show_default=False, rich_help_panel="Ranks", help="A plan, perhaps edited by hand.")
    ] = None,
    ratio: given.Ratio = None,
    rank: given.Rank = None,
    energy: given.Energy = None,
    form: given.Forms = None,
    keep: given.Keep = None,
    rank_multiple: given.RankMultiple = 8,
    calibrate: given.Calibrate = None,
    calibration_images: given.CalibrationImages = 2000,
    sensitivity: given.SensitivityKind = given.SensitivityName.BEST,
    polish: given.Polish = None,
    threads: given.Threads = 1,
    download: given.Download = False,
    save_plan: Annotated[Path | None, Option(show_default=False, help="Write the plan as JSON, too.")] = None,
    input: given.Input = None,
    classes: given.Classes = None,
    mean: given.Mean = None,
    std: given.Std = None,
    random_weights: given.RandomWeights = False,
    force: given.Force = False,
    seed: given.Seed = 0,
    device: given.Device = given.DeviceName.AUTO,
    json: given.AsJson = False,
) -> None:
    """Factor a pretrained network; give one of --budget, --plan, --ratio, --rank and --energy."""
    with working():
        from .convert import convert as verb

        answer = verb(
            model,
            output=output,
            checkpoint=checkpoint,
            budget=budget,
            plan=plan,
            ratio=ratio,
            rank=rank,
            energy=energy,
            forms=[name.value for name in form or ()],
            keep=keep or (),
            rank_multiple=rank_multiple,
            calibrate=calibrate,
            calibration_images=calibration_images,
            sensitivity=sensitivity.value,
            polish=polish,
            threads=threads,
            download=download,
            save_plan=save_plan,
            classes=classes,
            input_shape=shape_from(input),
            mean=numbers_from("--mean", mean),
            std=numbers_from("--std", std),
            random_weights=random_weights,
            force=force,
            seed=seed,
            device=device.value,
        )
    show(answer, as_json=json)
