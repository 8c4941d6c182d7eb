"""One step of a run: forward, losses, backward, clip, move, shrink, average."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from accelerate import Accelerator
from torch import nn

from ..analysis.probe import evaluating
from .average import Average
from .batches import Batch
from .config import FinetuneConfig
from .cuts import Cuts
from .objective import Losses, Objective, mean_of
from .optimizers import set_rate
from .together import Together


class Mover:
    """What moves a network by one step, on the mean of some batches.

    Args:
        student: the low-rank network.
        objective: what a step makes smaller.
        config: how.
        optimizer: of the student's weights.
        accelerator: of the run.
        together: the processes of the run.
        cuts: what shrinks directions on the way to them.
        average: of the weights.
        norms: whether BatchNorms learn their statistics.
    """

    def __init__(
        self,
        student: nn.Module,
        objective: Objective,
        config: FinetuneConfig,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        together: Together,
        cuts: Cuts,
        average: Average,
        *,
        norms: bool,
    ) -> None:
        self._student = student
        self._objective = objective
        self._config = config
        self._plain = optimizer
        self._optimizer = accelerator.prepare(optimizer)  # the network itself is never wrapped
        self._accelerator = accelerator
        self._together = together
        self._cuts = cuts
        self._average = average
        self._norms = norms

    def move(self, group: Sequence[Batch], step: int, rate: float) -> tuple[Losses, bool]:
        """Makes one step, or none where the losses or their gradients are not finite.

        Args:
            group: its batches.
            step: which one, from 1.
            rate: its learning rate.

        Returns:
            The means of the losses, and whether there was a step.
        """
        accelerator = self._accelerator
        set_rate(self._plain, rate)
        _in_training(self._student, norms=self._norms)
        several: list[Losses] = []
        sound = torch.ones((), dtype=torch.bool, device=accelerator.device)
        for inputs, targets in group:
            if self._objective.begin(inputs, self._together):
                _in_training(self._student, norms=self._norms)
            with accelerator.autocast():
                task, inside = self._objective.data_loss(inputs, targets)
            losses = self._objective.penalised(task, inside, self._cuts)
            several.append(losses)
            sound = sound & losses.whole.isfinite()
            accelerator.backward(losses.whole / len(group))
        self._together.average_gradients(self._student.parameters())
        norm = accelerator.clip_grad_norm_(self._student.parameters(), self._config.clip or math.inf)
        if accelerator.scaler is None:
            sound = sound & norm.isfinite()
        moved = self._together.every(bool(sound))[0]
        if moved or accelerator.scaler is not None:  # which leaves such a step out itself, and must be told of it
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if moved:
            self._cuts.after_step(step, rate)
            self._average.update()
        return mean_of(several), moved

    @torch.no_grad()
    def task_loss(self, batch: Batch) -> float:
        """The task's loss of a batch, in eval mode."""
        with evaluating(self._student), self._accelerator.autocast():
            return float(self._objective.data_loss(*batch)[0])


def norms_of(model: nn.Module) -> Iterator[nn.Module]:
    """Its BatchNorms."""
    return (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))


def _in_training(model: nn.Module, *, norms: bool) -> None:
    """Puts a network in training mode, except for BatchNorms that are frozen or shall be."""
    model.train()
    for norm in norms_of(model):
        weights = list(norm.parameters(recurse=False))
        frozen = bool(weights) and not any(weight.requires_grad for weight in weights)
        norm.train(norms and not frozen)
