"""The verbs on the command line: what each takes. `command` does the rest: it calls the function of the same name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from . import arguments as given
from .commands import command


@command
def compress(
    model: given.Model,
    data: given.Data,
    budget: given.NeededBudget,
    epochs: given.Epochs,
    output: given.OutputFolder,
    checkpoint: given.Checkpoint = None,
    forms: given.Forms = None,
    keep: given.Keep = None,
    rank_multiple: given.RankMultiple = 8,
    calibration_images: given.CalibrationImages = 2000,
    sensitivity: given.SensitivityKind = given.SensitivityName.BEST,
    polish: given.Polish = None,
    learning_rate: given.LearningRate = 0.005,
    distill: given.Distill = 0.7,
    mixed_precision: given.MixedPrecision = given.PrecisionName.NO,
    batch_size: given.BatchSize = 128,
    augment: given.Augmentation = None,
    workers: given.Workers = 0,
    download: given.Download = False,
    input_shape: given.Input = None,
    classes: given.Classes = None,
    mean: given.Mean = None,
    std: given.Std = None,
    random_weights: given.RandomWeights = False,
    threads: given.Threads = 1,
    force: given.Force = False,
    seed: given.Seed = 0,
    device: given.Device = given.DeviceName.AUTO,
) -> None:
    """All of it: plan, convert, fine-tune, fuse, export, verify and time, into one folder."""


@command
def demo(
    output: given.OutputFolder = Path("dprp-demo"),
    seed: given.Seed = 0,
    device: given.Device = given.DeviceName.AUTO,
) -> None:
    """Compress a small CNN on scikit-learn's digits, in a minute."""


@command
def survey(
    model: given.Model,
    checkpoint: given.Checkpoint = None,
    input_shape: given.Input = None,
    classes: given.Classes = None,
    trust: given.Trust = None,
    seed: given.Seed = 0,
    device: given.Device = given.DeviceName.AUTO,
) -> None:
    """List the layers: shapes, parameters, MACs, and how far each can be factored or why it stays."""


@command
def plan(
    model: given.Model,
    output: given.OptionalOutput = None,
    checkpoint: given.Checkpoint = None,
    budget: given.Budget = None,
    ratio: given.Ratio = None,
    rank: given.Rank = None,
    energy: given.Energy = None,
    forms: given.Forms = None,
    keep: given.Keep = None,
    rank_multiple: given.RankMultiple = 8,
    calibrate: given.Calibrate = None,
    calibration_images: given.CalibrationImages = 2000,
    sensitivity: given.SensitivityKind = given.SensitivityName.BEST,
    threads: given.Threads = 1,
    download: given.Download = False,
    input_shape: given.Input = None,
    classes: given.Classes = None,
    mean: given.Mean = None,
    std: given.Std = None,
    random_weights: given.RandomWeights = False,
    force: given.Force = False,
    seed: given.Seed = 0,
    device: given.Device = given.DeviceName.AUTO,
) -> None:
    """Show what each layer would become, without converting anything."""


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
    forms: given.Forms = None,
    keep: given.Keep = None,
    rank_multiple: given.RankMultiple = 8,
    calibrate: given.Calibrate = None,
    calibration_images: given.CalibrationImages = 2000,
    sensitivity: given.SensitivityKind = given.SensitivityName.BEST,
    polish: given.Polish = None,
    threads: given.Threads = 1,
    download: given.Download = False,
    save_plan: Annotated[Path | None, Option(show_default=False, help="Write the plan as JSON, too.")] = None,
    input_shape: given.Input = None,
    classes: given.Classes = None,
    mean: given.Mean = None,
    std: given.Std = None,
    random_weights: given.RandomWeights = False,
    force: given.Force = False,
    seed: given.Seed = 0,
    device: given.Device = given.DeviceName.AUTO,
) -> None:
    """Factor a pretrained network; give one of --budget, --plan, --ratio, --rank and --energy."""


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
    learning_rate: given.LearningRate = 0.005,
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
) -> None:
    """Train a compressed checkpoint while its ranks shrink to a budget."""


@command
def evaluate(
    model: given.AnyModel,
    data: given.Data,
    checkpoint: given.Checkpoint = None,
    limit: given.Limit = None,
    batch_size: given.BatchSize = 128,
    workers: given.Workers = 0,
    download: given.Download = False,
    input_shape: given.Input = None,
    classes: given.Classes = None,
    mean: given.Mean = None,
    std: given.Std = None,
    random_weights: given.RandomWeights = False,
    trust: given.Trust = None,
    seed: given.Seed = 0,
    device: given.Device = given.DeviceName.AUTO,
) -> None:
    """Count top-1 on the test images."""


@command
def export(
    model: given.AnyModel,
    output: given.Output,
    checkpoint: given.Checkpoint = None,
    tolerance: Annotated[
        float, Option(min=0.0, help="Largest accepted difference from torch, relative to the output's scale.")
    ] = 1e-4,
    input_shape: given.Input = None,
    classes: given.Classes = None,
    mean: given.Mean = None,
    std: given.Std = None,
    random_weights: given.RandomWeights = False,
    trust: given.Trust = None,
    force: given.Force = False,
    seed: given.Seed = 0,
    device: given.Device = given.DeviceName.AUTO,
) -> None:
    """Fuse into plain layers and write one ONNX file, compared with torch before it is kept."""


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
) -> None:
    """Time ONNX files against each other on the CPU, in turns."""


@command
def env() -> None:
    """Versions, processor and GPUs: what a bug report needs."""
