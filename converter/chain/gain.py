"""What training was worth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..training.record import Step


@dataclass(frozen=True)
class Gain:
    """Top-1 on the test images, in percent, at the same ranks.

    Attributes:
        before: of what training started from.
        after: of what came of it.
    """

    before: float
    after: float

    def __str__(self) -> str:
        told = f"{self.before:.2f} % top-1 before training, {self.after:.2f} % after it"
        if self.after >= self.before:
            return told
        return (
            f"{told}: it was no help here; keep what it started from (epochs 0), let the dense network alone teach "
            "(distill 1), or train on more images"
        )


def gain_of(steps: Iterable[Step]) -> Gain | None:
    """From the scores of a run; None where ranks fell on the way, or nothing was scored.

    Args:
        steps: of the run, in order; those without a score say nothing.
    """
    gain = None
    for step in steps:
        if step.start is not None and step.score is not None:
            gain = Gain(step.start, step.score)
    return gain
