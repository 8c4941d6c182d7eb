"""How to fine-tune, and what each step of it was."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from ..errors import TrainingError
from ..planning.policies import Budget
from .losses import RankPenalty
from .prune import Cut


class OptimizerKind(str, Enum):
    """Which optimizer trains the factors."""

    SGD = "sgd"
    ADAMW = "adamw"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class FinetuneConfig:
    """How to fine-tune. The defaults are those of the results in docs/RESULTS.md.

    Attributes:
        epochs: passes over the training data, >= 1.
        budget: where the ranks shall land; None leaves them, unless there is a threshold.
        threshold: the mode without a budget: drop directions below this part of a layer's largest singular value.
        learning_rate: peak of the one-cycle schedule.
        optimizer: SGD with momentum, or AdamW.
        momentum: of SGD.
        weight_decay: on u, v and other weights; not on s, biases and normalisation.
        warmup: part of the steps in which the rate rises.
        label_smoothing: of the cross-entropy.
        orthogonality: lambda_o.
        rank: lambda_r; acts while ranks are being pruned.
        rank_penalty: R.
        distill: weight of the teacher's part of the task loss, 0..1; 0 when no teacher is given.
        temperature: of the distillation.
        prune_until: part of the steps after which the budget is met.
        prune_every: steps between two cuts.
        rank_multiple: ranks are cut to multiples of this.
        clip: largest gradient norm; 0 for none.
        mixed_precision: "no", "bf16" or "fp16".
        channels_last: memory layout of a network of images; much faster on CPUs and on tensor cores.
        seed: of the random numbers.
        cpu: stay on the CPU even where there is a GPU.
    """

    epochs: int = 3
    budget: Budget | None = None
    threshold: float | None = None
    learning_rate: float = 0.005
    optimizer: OptimizerKind = OptimizerKind.SGD
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: float = 0.1
    label_smoothing: float = 0.0
    orthogonality: float = 1e-2
    rank: float = 1e-3
    rank_penalty: RankPenalty = RankPenalty.HOYER
    distill: float = 0.7
    temperature: float = 4.0
    prune_until: float = 0.5
    prune_every: int = 20
    rank_multiple: int = 8
    clip: float = 5.0
    mixed_precision: str = "no"
    channels_last: bool = True
    seed: int = 0
    cpu: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise TrainingError(f"epochs {self.epochs} is below 1; give at least one")
        if self.budget is not None and self.threshold is not None:
            raise TrainingError("a budget and a threshold are two ways to end up somewhere; give one of them")
        if self.threshold is not None and not 0.0 < self.threshold < 1.0:
            raise TrainingError(f"threshold {self.threshold:g} is not in (0, 1); try 0.05")
        if not 0.0 < self.learning_rate < math.inf:
            raise TrainingError(f"learning rate {self.learning_rate:g} is not above 0; try 0.005")
        for name, value in (("prune_until", self.prune_until), ("distill", self.distill)):
            if not 0.0 <= value <= 1.0:
                raise TrainingError(f"{name} {value:g} is not in 0..1; give a part of the whole")


@dataclass(frozen=True)
class Step:
    """What one training step was, for a progress bar or a record.

    Attributes:
        step, steps: this one (from 1), and all.
        epoch: from 1.
        loss, task, orthogonality, rank: the whole loss and its unweighted parts.
        learning_rate: used in this step.
        macs, params: parts of the dense network's cost now.
        top1: percent on the evaluation data, after an epoch's last step.
        cut: the ranks that this step's cut changed.
    """

    step: int
    steps: int
    epoch: int
    loss: float
    task: float
    orthogonality: float
    rank: float
    learning_rate: float
    macs: float
    params: float
    top1: float | None = None
    cut: Cut | None = None
