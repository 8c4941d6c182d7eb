"""What a network is scored by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ..analysis.accuracy import Batches, evaluate


@dataclass(frozen=True)
class Metric:
    """A figure of merit.

    Attributes:
        name: such as "mIoU".
        score: of a network in eval mode, on the device of its parameters, and batches as the loader gives them.
        adds_up: whether the score of all samples is the mean of that of its parts, weighted by their samples: several
            processes then share the work.
    """

    name: str
    score: Callable[[nn.Module, Batches], float]
    adds_up: bool = False


def _top1(model: nn.Module, batches: Batches) -> float:
    return evaluate(model, batches).top1


TOP1 = Metric("top-1", _top1, adds_up=True)
"""Percent of the images whose largest output is the label."""
