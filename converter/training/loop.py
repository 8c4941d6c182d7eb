"""Fine-tuning with dynamic rank pruning: train the factors, drop ranks on the way, land on the budget.

A step: draw, forward, losses, backward, clip, move, shrink, average, cut, record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..analysis.accuracy import Batches
from ..analysis.calibration import Moments
from ..analysis.probe import evaluating
from ..analysis.running import copied
from ..conversion.attached import plan_of, relabel
from ..errors import TrainingError
from ..lowrank.costs import Unit
from .average import Average
from .batches import Batch, Draws
from .config import FinetuneConfig
from .cuts import Cuts, told
from .metric import TOP1, Metric
from .objective import Loss, Losses, Objective
from .optimizers import optimizer_for, rate_at, set_rate
from .processes import own_accelerator
from .progress import FinetuneBar
from .pruner import RankPruner
from .record import Cut, Step


def finetune(
    model: nn.Module,
    train: Batches,
    config: FinetuneConfig | None = None,
    *,
    evaluate_on: Batches | None = None,
    teacher: nn.Module | None = None,
    moments: Moments | None = None,
    loss: Loss | None = None,
    metric: Metric = TOP1,
    on_step: Callable[[Step], None] | None = None,
    progress: bool = True,
) -> nn.Module:
    """Trains a converted network while its ranks shrink to the budget.

    Args:
        model: what `convert` gave; untouched.
        train: pairs of inputs and targets, with a length; usually a DataLoader. For a classifier, images (N, C, H, W)
            and labels (N,).
        config: how.
        evaluate_on: pairs for the metric after each epoch.
        teacher: the dense network, for distillation and matching.
        moments: second moments of the layers' inputs; cuts then lose the least of the outputs.
        loss: of outputs and targets, () floating point; cross-entropy of the first output by default.
        metric: top-1 by default.
        on_step: is told of every step.
        progress: show a progress bar.

    Returns:
        A trained float32 copy in eval mode, on the CPU. Under a budget it costs at most the budget. Frozen parameters
        and BatchNorms are as they were, and so are torch's random numbers and Accelerate's state.

    Raises:
        TrainingError: nothing to train, a loss that is not finite, or a precision that the device does not have.
        ModelError: the network cannot take the inputs.
        BudgetError: the budget cannot be reached by cutting ranks.
    """
    config = config or FinetuneConfig()
    with own_accelerator(config) as accelerator:
        run = _Run(model, train, config, accelerator, teacher, moments, loss)
        steps = config.epochs * run.steps_per_epoch
        with FinetuneBar(config.epochs, steps, metric.name, enabled=progress and accelerator.is_main_process) as bar:
            for step in run.steps(evaluate_on, metric):
                bar.show(step)
                if on_step is not None:
                    on_step(step)
        return run.result()


class _Run:
    """One run: the network, what moves it, and where it is."""

    def __init__(
        self,
        model: nn.Module,
        train: Batches,
        config: FinetuneConfig,
        accelerator: Accelerator,
        teacher: nn.Module | None,
        moments: Moments | None,
        loss: Loss | None,
    ) -> None:
        if not isinstance(train, Sized) or len(train) == 0:
            raise TrainingError("the training data has no batches or no length; give a DataLoader with images")
        plan = plan_of(model)
        device = accelerator.device
        self._config = config
        self._accelerator = accelerator
        self._student = copied(model).to(device)
        plain = optimizer_for(self._student, config)
        placed = None if moments is None else {key: moment.to(device) for key, moment in moments.items()}
        pruner = RankPruner(self._student, plan, plain, rank_multiple=config.rank_multiple, moments=placed)
        if config.budget is not None:
            pruner.check(config.budget)
        self._plain = plain
        self._optimizer, loader = accelerator.prepare(plain, train)  # the network itself is never wrapped
        self._draws = Draws(
            loader,
            device,
            seed=config.seed,
            layout=torch.channels_last if config.channels_last else torch.contiguous_format,
            normalised=any(_is_norm(module) for module in self._student.modules()),
        )
        self.steps_per_epoch = -(-len(train) // config.accumulate)
        self._cuts = Cuts(pruner, plan, config, config.epochs * self.steps_per_epoch)
        self._average = Average(self._student, config.average)
        if teacher is not None and (config.distill > 0 or config.matching > 0):
            self._teacher: nn.Module | None = copied(teacher).to(device).eval().requires_grad_(False)
        else:
            self._teacher = None
        self._objective: Objective | None = None
        self._task_loss = loss
        self._layers = pruner.layers
        self._whole = {unit: plan.fraction(unit) for unit in Unit}
        self._step = 0

    def steps(self, evaluate_on: Batches | None, metric: Metric) -> Iterator[Step]:
        """Makes all steps of all epochs.

        Raises:
            TrainingError: the data gave no batch, or a loss is not finite.
        """
        config = self._config
        total = config.epochs * self.steps_per_epoch
        for epoch in range(1, config.epochs + 1):
            for group, last in self._draws.groups(epoch, config.accumulate):
                self._step += 1
                if last and epoch == 1:  # the loader may give fewer batches than its length says
                    total = config.epochs * self._step
                    self._cuts.spread_over(total)
                rate = rate_at(self._step, total, config)
                losses = self._move(group, rate)
                final = last and epoch == config.epochs
                cut = None
                if self._cuts.due(self._step) or (final and not self._cuts.over):
                    before = self._asked(group[-1])
                    cut = told(self._cuts.cut(self._step, all_of_them=final), before, self._asked(group[-1]))
                    if cut.after:
                        self._average.restart()
                        now = plan_of(self._student)
                        self._whole = {unit: now.fraction(unit) for unit in Unit}
                score = None
                if last and evaluate_on is not None:
                    with self._average.applied(), evaluating(self._student), torch.no_grad():
                        score = metric.score(self._student, evaluate_on)
                yield self._told(total, epoch, losses, rate, score, cut)

    def result(self) -> nn.Module:
        """The trained network."""
        config = self._config
        if self._step == 0:
            raise TrainingError("the training data gave no batch of two images or more; give it more images")
        if not self._cuts.over:  # the last epochs gave no batch
            self._cuts.cut(self._step, all_of_them=True)
            self._average.restart()
        self._average.settle()
        if config.prunes:
            relabel(self._student, f"threshold={config.threshold:g}" if config.budget is None else str(config.budget))
        return self._student.cpu().eval()

    def _move(self, group: list[Batch], rate: float) -> Losses:
        """One step of the optimizer, on the mean of some batches."""
        config, accelerator = self._config, self._accelerator
        set_rate(self._plain, rate)
        _in_training(self._student, norms=config.train_norms)
        for inputs, targets in group:
            with accelerator.autocast():
                task, inside = self._objective_for(inputs).data_loss(inputs, targets)
            losses = self._objective_for(inputs).penalised(task, inside, self._cuts)
            if not bool(losses.whole.isfinite()):
                raise TrainingError(
                    f"the loss is {losses.whole.item()} at step {self._step}; lower the learning rate "
                    f"(now {config.learning_rate:g}) or check the data"
                )
            accelerator.backward(losses.whole / len(group))
        if config.clip:
            accelerator.clip_grad_norm_(self._student.parameters(), config.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._cuts.after_step(self._step, rate)
        self._average.update()
        return losses

    def _told(
        self, steps: int, epoch: int, losses: Losses, rate: float, score: float | None, cut: Cut | None
    ) -> Step:
        parts = (losses.whole, losses.task, losses.matching, losses.orthogonality, losses.rank)
        whole, task, matching, orthogonality, rank = torch.stack([part.detach().float() for part in parts]).tolist()
        return Step(
            step=self._step,
            steps=steps,
            epoch=epoch,
            loss=whole,
            task=task,
            matching=matching,
            orthogonality=orthogonality,
            rank=rank,
            learning_rate=rate,
            macs=self._whole[Unit.MACS],
            params=self._whole[Unit.PARAMS],
            score=score,
            cut=cut,
        )

    def _objective_for(self, inputs: Any) -> Objective:
        if self._objective is None:
            images = inputs if isinstance(inputs, Tensor) else None
            self._objective = Objective(
                self._student, self._teacher, self._config, self._task_loss, self._layers, images
            )
            _in_training(self._student, norms=self._config.train_norms)
        return self._objective

    @torch.no_grad()
    def _asked(self, batch: Batch) -> float:
        """The task loss of a batch, in eval mode."""
        with evaluating(self._student), self._accelerator.autocast():
            return float(self._objective_for(batch[0]).data_loss(*batch)[0])


def _in_training(model: nn.Module, *, norms: bool) -> None:
    """Puts a network in training mode, except for BatchNorms that are frozen or shall be."""
    model.train()
    for module in model.modules():
        if _is_norm(module):
            weights = list(module.parameters(recurse=False))
            frozen = bool(weights) and not any(weight.requires_grad for weight in weights)
            module.train(norms and not frozen)


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)
