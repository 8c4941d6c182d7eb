"""What a network scores on its way: before training, and after each epoch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..analysis.accuracy import Batches
from ..analysis.probe import evaluating
from .average import Average
from .metric import Metric
from .together import Together


class Scores:
    """Scores of a network in training.

    Args:
        evaluate_on: what to score on; None for no scores.
        metric: what a score is.
        together: the processes of the run, which share the work.

    Attributes:
        start: before the first step; None where nothing was scored then.
        best: the highest after an epoch so far.
    """

    def __init__(self, evaluate_on: Batches | None, metric: Metric, together: Together) -> None:
        self._evaluate_on = evaluate_on
        self._metric = metric
        self._together = together
        self.start: float | None = None
        self.best: float | None = None

    def begin(self, model: nn.Module, average: Average) -> None:
        """Scores what training starts from."""
        self.start = self._score(model, average)

    def take(self, model: nn.Module, average: Average) -> float | None:
        """Scores what an epoch has ended with, its average where there is one."""
        score = self._score(model, average)
        if score is not None:
            self.best = score if self.best is None else max(score, self.best)
        return score

    def state(self) -> dict[str, Any]:
        """What going on depends on."""
        return {"start": self.start, "best": self.best}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a state; one of an older version has no start."""
        self.start, self.best = state.get("start"), state["best"]

    def _score(self, model: nn.Module, average: Average) -> float | None:
        if self._evaluate_on is None:
            return None
        with average.applied(), evaluating(model), torch.no_grad():
            self._together.same_buffers(model)
            return self._together.score(model, self._evaluate_on, self._metric)
