"""The chain up to files: plan, convert, polish or fine-tune, judge."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..analysis.agreement import agreement
from ..analysis.inputs import Samples
from ..conversion.attached import plan_of
from ..errors import OptionError
from ..planning.plan import Plan
from ..planning.policies import MacBudget, ParamBudget, Policy
from ..training.config import FinetuneConfig
from ..training.factor_moments import input_moments
from ..training.loop import finetune
from ..training.record import Step
from ..training.run_folder import RunFolder
from .conversion import Conversion, ConversionConfig, factorise
from .data import CalibrationBatches
from .gain import Gain, gain_of
from .network import Network
from .verdict import Verdict

JUDGES = 500
"""Test images at most to compare a trained network's answers with the dense one's."""


@dataclass(frozen=True)
class CompressConfig(ConversionConfig):
    """How to compress.

    Attributes:
        epochs: of fine-tuning, behind polishing; 0 for none.
        headroom: times the planned ranks to start fine-tuning at, >= 1; above 1 they fall to the budget on the way.
        learning_rate, distill, matching, mixed_precision: as in `FinetuneConfig`; the dense network is the teacher.

    Raises:
        OptionError: a number out of range.
    """

    epochs: int = 0
    headroom: float = 1.0
    learning_rate: float = FinetuneConfig.learning_rate
    distill: float = FinetuneConfig.distill
    matching: float = FinetuneConfig.matching
    mixed_precision: str = "no"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs < 0:
            raise OptionError(f"epochs {self.epochs} is below 0; give 0 to stop after conversion, or more")
        if not 1.0 <= self.headroom < math.inf:
            raise OptionError(f"headroom {self.headroom:g} is below 1; give 1 for the planned ranks, or about 1.5")
        self.finetuning(None)

    def finetuning(self, budget: MacBudget | ParamBudget | None) -> FinetuneConfig:
        """The settings of fine-tuning down to a budget."""
        return FinetuneConfig(
            epochs=max(1, self.epochs),
            budget=budget,
            learning_rate=self.learning_rate,
            distill=self.distill,
            matching=self.matching,
            rank_multiple=self.rank_multiple,
            mixed_precision=self.mixed_precision,
            seed=self.seed,
            cpu=self.device is None or self.device.type == "cpu",
        )


@dataclass(frozen=True)
class Compression:
    """What became of a network.

    Attributes:
        model: low-rank, in eval mode on the CPU.
        plan: its ranks, and why the other layers stayed dense.
        conversion: what training started from.
        verdict: how often it answers as the dense network does, on images that nothing was fitted on; None without.
        gain: what training was worth; None without.
    """

    model: nn.Module
    plan: Plan
    conversion: Conversion
    verdict: Verdict | None
    gain: Gain | None


def plan_and_convert(
    network: Network,
    target: Policy,
    config: CompressConfig,
    *,
    calibrate_on: CalibrationBatches | None,
    folder: RunFolder | None = None,
    progress: bool,
) -> Conversion:
    """The first half: all that needs no labels.

    Args:
        network: dense; on the CPU afterwards.
        target: a budget, or another rule for ranks.
        config: how.
        calibrate_on: images to plan and to fit the factors on; None fits them to the weights alone.
        folder: of training; of a run that goes on, the plan is that of its start.
        progress: show bars.

    Raises:
        ConverterError: one sentence.
    """
    trained = config.epochs > 0
    if trained and folder is not None and folder.resumes:
        config = replace(config, forms=(), keep=(), polish=0)  # which are in the plan, and in the run's weights
        return factorise(network, folder.plan(), config, calibrate_on=calibrate_on, judged=False, progress=progress)
    spare = config.headroom if trained and _to_prune(target, config) is not None else 1.0
    if spare > 1 and config.polish is None:
        config = replace(config, polish=0)  # the cuts would undo it
    # What goes on to be trained is judged afterwards.
    return factorise(
        network, target, config, calibrate_on=calibrate_on, spare=spare, judged=not trained, progress=progress
    )


def train_and_judge(
    made: Conversion,
    network: Network,
    target: Policy,
    config: CompressConfig,
    *,
    train: Iterable[Any] | None,
    test: Iterable[Any] | None,
    judges: Callable[[], Samples] | None,
    folder: RunFolder | None = None,
    progress: bool,
) -> Compression:
    """The second half, after `plan_and_convert` with the same network, target and settings.

    Args:
        made: the first half.
        network: the dense one, which is the teacher; on the CPU afterwards.
        target, config: as they were.
        train: batches of images and labels, where there are epochs.
        test: batches to score on after each epoch; None for no scores.
        judges: gives images that training has not seen, to compare answers on.
        folder: in which training survives an interruption; None for none.
        progress: show bars.

    Raises:
        ConverterError: one sentence.
    """
    model, verdict, gain = made.model, made.verdict, None
    if config.epochs > 0:
        assert train is not None
        scored: list[Step] = []
        model = finetune(
            model,
            train,
            config.finetuning(_to_prune(target, config)),
            evaluate_on=test,
            teacher=network.model,
            folder=folder,
            on_step=lambda step: None if step.score is None else scored.append(step),
            moments=None if made.calibration is None else input_moments(model, made.calibration.images),
            progress=progress,
        )
        gain = gain_of([*(() if folder is None else folder.history()), *scored])
        verdict = None  # training has seen the calibration images that were held out
    model = model.eval()
    if verdict is None and judges is not None:
        verdict = Verdict(agreement(model.to(config.device), network.model.to(config.device), judges()))
    network.model.cpu()
    return Compression(model.cpu(), plan_of(model), made, verdict, gain)


def _to_prune(target: Policy, config: CompressConfig) -> MacBudget | ParamBudget | None:
    """What fine-tuning cuts ranks down to; a plan by latency or by a rule is a plan for these very ranks."""
    return target if config.headroom > 1 and isinstance(target, (MacBudget, ParamBudget)) else None
