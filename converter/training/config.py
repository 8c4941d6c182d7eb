"""How to fine-tune."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from ..errors import TrainingError
from ..planning.policies import Budget


class OptimizerKind(str, Enum):
    """Which optimizer trains the network.

    adam  steps are relative to the size of each tensor
    muon  factors move by as much along each direction, relative to their size; all else moves as by `sgd`
    """

    SGD = "sgd"
    ADAMW = "adamw"
    ADAM = "adam"
    MUON = "muon"

    def __str__(self) -> str:
        return self.value


class RankPenalty(str, Enum):
    """What makes directions small before they are cut.

    hoyer, nuclear  a loss on all singular values, `losses.rank_penalty`
    tail            the same, on those only that the next cut takes, over those that it leaves
    proximal        a soft threshold on singular values after each step, apart from the gradient
    fade            what the next cut takes fades out in a straight line until then
    none            the cut takes them as they are
    """

    NONE = "none"
    HOYER = "hoyer"
    NUCLEAR = "nuclear"
    TAIL = "tail"
    PROXIMAL = "proximal"
    FADE = "fade"

    def __str__(self) -> str:
        return self.value


PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class FinetuneConfig:
    """How to fine-tune. The defaults are those of the results in docs/RESULTS.md.

    Attributes:
        epochs: passes over the training data, >= 1.
        budget: where the ranks shall land; None leaves them, unless there is a threshold.
        threshold: the mode without a budget: drop directions below this part of a layer's largest singular value.
        learning_rate: peak of the one-cycle schedule.
        optimizer: of the weights.
        momentum: of SGD.
        weight_decay: on u, v and other weights; not on s, biases and normalisation.
        warmup: part of the steps in which the rate rises.
        accumulate: batches a step, >= 1.
        label_smoothing: of the cross-entropy.
        distill: weight of the teacher's answers in the task loss, 0..1; 0 when no teacher is given.
        temperature: of the distillation.
        matching: weight of the distance from the teacher at each low-rank layer; 0 when no teacher is given.
        orthogonality: lambda_o.
        rank: lambda_r; acts while ranks are being pruned.
        rank_penalty: R.
        prune_until: part of the steps after which the budget is met.
        cuts: how many there are until then, >= 1.
        rank_multiple: ranks are cut to multiples of this; None for 8, and 16 in layers of 64 channels or more.
        clip: largest gradient norm; 0 for none.
        average: part of the old average of weights that a step leaves, 0 <= average < 1; 0 for no average.
        train_norms: whether BatchNorms learn their statistics anew; frozen ones never do. None: unless labels have no
            part, there being a teacher and `distill` 1.
        mixed_precision: "no", "bf16" or "fp16".
        channels_last: memory layout of a network of images; much faster on CPUs and on tensor cores.
        seed: of the random numbers.
        cpu: stay on the CPU even where there is a GPU.

    Raises:
        TrainingError: a value out of range.
    """

    epochs: int = 3
    budget: Budget | None = None
    threshold: float | None = None
    learning_rate: float = 0.01
    optimizer: OptimizerKind = OptimizerKind.MUON
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: float = 0.1
    accumulate: int = 1
    label_smoothing: float = 0.0
    distill: float = 0.7
    temperature: float = 4.0
    matching: float = 0.0
    orthogonality: float = 0.0
    rank: float = 1e-3
    rank_penalty: RankPenalty = RankPenalty.NONE
    prune_until: float = 0.5
    cuts: int = 10
    rank_multiple: int | None = None
    clip: float = 5.0
    average: float = 0.0
    train_norms: bool | None = None
    mixed_precision: str = "no"
    channels_last: bool = True
    seed: int = 0
    cpu: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise TrainingError(f"epochs {self.epochs} is below 1; give at least one")
        for name, count in (("accumulate", self.accumulate), ("cuts", self.cuts)):
            if count < 1:
                raise TrainingError(f"{name} {count} is below 1; give at least 1")
        if self.budget is not None and self.threshold is not None:
            raise TrainingError("a budget and a threshold are two ways to end up somewhere; give one of them")
        if self.threshold is not None and not 0.0 < self.threshold < 1.0:
            raise TrainingError(f"threshold {self.threshold:g} is not in (0, 1); try 0.05")
        if not 0.0 < self.learning_rate < math.inf:
            raise TrainingError(f"learning rate {self.learning_rate:g} is not above 0; try 0.005")
        for name, value in (("prune_until", self.prune_until), ("distill", self.distill), ("warmup", self.warmup)):
            if not 0.0 <= value <= 1.0:
                raise TrainingError(f"{name} {value:g} is not in 0..1; give a part of the whole")
        for name, value in (
            ("matching", self.matching),
            ("orthogonality", self.orthogonality),
            ("rank", self.rank),
            ("clip", self.clip),
        ):
            if not 0.0 <= value < math.inf:
                raise TrainingError(f"{name} {value:g} is not 0 or above; give 0 for none")
        if not 0.0 <= self.average < 1.0:
            raise TrainingError(f"average {self.average:g} is not in 0..1 without 1; try 0.99, or 0 for none")
        if self.mixed_precision not in PRECISIONS:
            raise TrainingError(
                f"mixed precision {self.mixed_precision!r} is not one of {', '.join(PRECISIONS)}; choose one of these"
            )

    @property
    def prunes(self) -> bool:
        """Whether ranks are to fall."""
        return self.budget is not None or self.threshold is not None

    def told(self) -> dict[str, Any]:
        """Plain JSON values; those on which the course of a run depends."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: value if isinstance(value, (int, float, bool, type(None))) else str(value)
            for name, value in values.items()
        }
