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
    """

    name: str
    score: Callable[[nn.Module, Batches], float]


def _top1(model: nn.Module, batches: Batches) -> float:
    return evaluate(model, batches).top1


TOP1 = Metric("top-1", _top1)
"""Percent of the images whose largest output is the label."""
