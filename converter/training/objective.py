"""What a step makes smaller: the task's loss, the distance from the teacher, and the penalties."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from ..analysis.inputs import Inputs
from ..analysis.running import run, scores_in, tensors_in
from ..conversion.matching import Pair, Sizes
from ..lowrank.layers import LowRank
from .config import FinetuneConfig
from .cuts import Cuts
from .losses import cross_entropy, distillation, orthogonality
from .together import Together

Loss = Callable[[Any, Any], Tensor]
"""Of a network's answer and its targets: () floating point."""


@dataclass(frozen=True)
class Losses:
    """One batch's losses, () float32 each; the whole is their weighted sum."""

    whole: Tensor
    task: Tensor
    matching: Tensor
    orthogonality: Tensor
    rank: Tensor


def mean_of(several: Sequence[Losses]) -> Losses:
    """The means over batches, without gradients."""
    parts = ([getattr(one, field.name).detach().float() for one in several] for field in fields(Losses))
    return Losses(*(torch.stack(part).mean() for part in parts))


class Objective:
    """The loss of fine-tuning. What has no weight is not computed.

    Args:
        student: the low-rank network.
        teacher: the dense one, in eval mode on the same device; None without.
        config: the weights.
        loss: of the task; None for cross-entropy.
        layers: the student's low-rank layers.

    Attributes:
        sizes: variances at the places where both networks are compared, once they are known; None where they are not.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        config: FinetuneConfig,
        loss: Loss | None,
        layers: Mapping[str, LowRank],
    ) -> None:
        self._student = student
        self._teacher = teacher
        self._config = config
        self._loss = loss
        self._layers = layers
        self._pair: Pair | None = None
        self.sizes: Sizes | None = None

    def begin(self, inputs: Any, together: Together) -> bool:
        """Finds the places where both networks are compared, which all processes measure alike.

        Args:
            inputs: the first that there are; a few of them are run.
            together: the processes.

        Returns:
            Whether it did: there are none without a teacher, and later inputs change nothing.
        """
        compares = self._teacher is not None and self._config.matching > 0
        if self._pair is not None or not compares or not isinstance(inputs, (Tensor, Inputs)):
            return False
        assert self._teacher is not None
        self._pair = Pair(self._student, self._teacher, inputs, len(inputs), self.sizes)
        self.sizes = self._pair.sizes = together.sent(self._pair.sizes)
        return True

    def data_loss(self, inputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        """The task's loss, with the teacher's answers in it, and the distance from the teacher inside."""
        config, nothing = self._config, torch.zeros((), device=_device(inputs))
        wanted, inside = None, nothing
        if self._pair is not None:
            found = self._pair.compare(inputs)
            outputs, wanted, inside = found.answer, found.wanted, nothing if found.layers is None else found.layers
        else:
            outputs = run(self._student, inputs)
            if self._teacher is not None and config.distill > 0:
                with torch.no_grad():
                    wanted = run(self._teacher, inputs)
        task = nothing
        if wanted is None or config.distill < 1:
            task = self._task(outputs, targets)
        if wanted is not None and config.distill > 0:
            task = (1 - config.distill) * task + config.distill * _distilled(outputs, wanted, config.temperature)
        return task.float(), inside

    def penalised(self, task: Tensor, inside: Tensor, cuts: Cuts) -> Losses:
        """Adds the penalties, in float32."""
        config, nothing = self._config, torch.zeros((), device=task.device)
        upright = orthogonality(self._layers.values()) if config.orthogonality else nothing
        press = cuts.penalty() if cuts.presses else nothing
        whole = task + config.matching * inside + config.orthogonality * upright + config.rank * press
        return Losses(whole, task, inside, upright, press)

    def _task(self, outputs: Any, targets: Any) -> Tensor:
        if self._loss is not None:
            return self._loss(outputs, targets)
        return cross_entropy(outputs, targets, self._config.label_smoothing)


def _distilled(outputs: Any, wanted: Any, temperature: float) -> Tensor:
    """Over all outputs that both networks give alike; in training some give more than when they are asked."""
    ours, theirs = _floats(outputs), _floats(wanted)
    if [one.shape for one in ours] != [one.shape for one in theirs]:
        ours, theirs = [scores_in(outputs)], [scores_in(wanted)]
    return torch.stack(
        [distillation(mine, their, temperature) for mine, their in zip(ours, theirs, strict=True)]
    ).mean()


def _floats(answer: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_in(answer) if tensor.is_floating_point()]


def _device(inputs: Any) -> torch.device:
    return next((tensor.device for tensor in tensors_in(inputs)), torch.device("cpu"))
