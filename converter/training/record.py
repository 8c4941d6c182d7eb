"""What happened in a run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Cut:
    """One cut.

    Attributes:
        before, after: ranks of the layers that it changed.
        jump: by how much the task loss of the step's batch rose, in eval mode; None where nobody looked.
    """

    before: dict[str, int]
    after: dict[str, int]
    jump: float | None = None


@dataclass(frozen=True)
class Step:
    """What one training step was, for a progress bar or a record.

    Attributes:
        step, steps: this one (from 1), and all.
        epoch: from 1.
        loss, task, matching, orthogonality, rank: the whole loss and its unweighted parts; 0 where the weight is 0.
        learning_rate: used in this step.
        macs, params: parts of the dense network's cost now.
        score: of the metric on the evaluation data, after an epoch's last step; top-1 in percent by default.
        best: the highest score so far, where there is one.
        start: the score before the first step, beside each later one, where training keeps the ranks.
        cut: the ranks that this step's cut changed.
        skipped: its loss or gradient was not finite, and the weights stayed.
    """

    step: int
    steps: int
    epoch: int
    loss: float
    task: float
    matching: float
    orthogonality: float
    rank: float
    learning_rate: float
    macs: float
    params: float
    score: float | None = None
    best: float | None = None
    start: float | None = None
    cut: Cut | None = None
    skipped: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; None for a number that is not finite, and nothing where there is nothing to tell."""
        told = {**asdict(self), "skipped": self.skipped or None}
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in told.items()
            if value is not None
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Step:
        """Reads what `to_dict` wrote.

        Raises:
            KeyError, TypeError: something is missing or of another kind.
        """
        given: dict[str, Any] = {name: math.nan if value is None else value for name, value in values.items()}
        if "cut" in given:
            given["cut"] = Cut(**given["cut"])
        return cls(**given)
