"""Polishing and fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from .base import Options

PenaltyName = Literal["none", "hoyer", "nuclear", "tail", "proximal", "fade"]
PrecisionName = Literal["no", "bf16", "fp16"]
TrackerName = Literal["tensorboard", "wandb"]
OptimizerName = Literal["sgd", "adamw", "adam", "muon"]


@dataclass(frozen=True, kw_only=True)
class PolishOptions(Options):
    """Training without labels.

    Attributes:
        polish: Train without labels on the calibration images; 0 for none.
    """

    polish: Annotated[int | None, Option(metavar="STEPS", min=0, show_default="a minute or two")] = None


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Options):
    """Training.

    Attributes:
        epochs: Passes over the training images.
        learning_rate: Peak learning rate.
        distill: Weight of the dense teacher's outputs in the loss, 0..1; at 1 labels have no part.
        matching: Weight of the distance from the dense teacher at each low-rank layer.
        mixed_precision: Numbers to train in.
    """

    epochs: int
    learning_rate: Annotated[float, Option("--lr")] = 0.01
    distill: float = 0.7
    matching: Annotated[float, Option(min=0.0)] = 0.0
    mixed_precision: PrecisionName = "no"


@dataclass(frozen=True, kw_only=True)
class FinetuningOptions(TrainingOptions):
    """All that can be said of training.

    Attributes:
        teacher: Checkpoint of the dense network, to learn from.
        optimizer: What trains the factors.
        weight_decay: Of u and v.
        orthogonality: Weight of that loss.
        rank_loss: Weight of that loss.
        rank_penalty: What makes ranks small before they are cut.
        prune_until: Part of the steps after which the budget is met.
        cuts: How many there are until then.
        accumulate: Batches a step.
        average: Part of the old average of weights that a step leaves; 0 for no average.
    """

    teacher: Path | None = None
    optimizer: OptimizerName = "muon"
    weight_decay: Annotated[float, Option(min=0.0)] = 1e-4
    orthogonality: Annotated[float, Option(min=0.0)] = 0.0
    rank_loss: Annotated[float, Option(min=0.0)] = 1e-3
    rank_penalty: PenaltyName = "none"
    prune_until: float = 0.5
    cuts: Annotated[int, Option(min=1)] = 10
    accumulate: Annotated[int, Option(min=1)] = 1
    average: Annotated[float, Option(min=0.0)] = 0.0


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """What a run needs to survive.

    Attributes:
        run: Folder in which the run survives; by default the output's name with .run.
        save_every: Steps between saves; 0 for none.
        resume: Go on with the run in this folder, which was cut off, with its options.
        log: Tell a tracker of every step, too.
    """

    run: Annotated[Path | None, Option(metavar="FOLDER")] = None
    save_every: Annotated[int | None, Option(metavar="STEPS", min=0, show_default="1 % of the time")] = None
    resume: Annotated[Path | None, Option(metavar="FOLDER")] = None
    log: TrackerName | None = None
