"""A plan on its way to a conversion, with the images that it needs there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..analysis.calibration import Calibration
from ..analysis.inputs import Samples
from ..planning.plan import Plan
from ..planning.policies import Policy


@dataclass(frozen=True)
class Planned:
    """A plan for a dense network, and what it was made from.

    Attributes:
        plan: where the ranks shall end up.
        calibration: images that the plan was made with, and the factors shall be fitted on; None without.
        held_out: images to judge by; None without calibration.
        replan: makes a plan for another budget from the same measurements; None where the plan was given.
    """

    plan: Plan
    calibration: Calibration | None
    held_out: Samples | None = None
    replan: Callable[[Policy], Plan] | None = None
