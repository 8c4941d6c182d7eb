"""How far to go, and what to go by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from typer import Option

from .base import Options

FormName = Literal["channel", "pointwise", "spatial"]
SensitivityName = Literal["best", "energy", "kl", "mixed"]

_BUDGET = Option(metavar="UNIT=PART")


@dataclass(frozen=True, kw_only=True)
class BudgetOptions(Options):
    """How much may stay, if that is said.

    Attributes:
        budget: Part of the dense network to keep: macs=0.5, params=0.5 or latency=0.5.
    """

    budget: Annotated[str | None, _BUDGET] = None


@dataclass(frozen=True, kw_only=True)
class NeededBudgetOptions(Options):
    """How much may stay.

    Attributes:
        budget: Part of the dense network to keep: macs=0.5, params=0.5 or latency=0.5.
        headroom: Times the planned ranks to start training at; above 1 they fall to the budget on the way.
    """

    budget: Annotated[str, _BUDGET]
    headroom: Annotated[float, Option(min=1.0)] = 1.0


@dataclass(frozen=True, kw_only=True)
class RuleOptions(BudgetOptions):
    """A budget or a rule.

    Attributes:
        ratio: Part of each layer's full rank.
        rank: The same rank for every layer.
        energy: Part of each layer's energy to keep.
    """

    ratio: float | None = None
    rank: int | None = None
    energy: float | None = None


@dataclass(frozen=True, kw_only=True)
class MultipleOptions(Options):
    """Which ranks there may be.

    Attributes:
        rank_multiple: Under a budget, ranks are multiples of this.
    """

    rank_multiple: Annotated[int | None, Option(min=1, show_default="8, or 16 in wide layers")] = None


@dataclass(frozen=True, kw_only=True)
class PlanningOptions(MultipleOptions):
    """How a plan is made.

    Attributes:
        forms: Allowed forms; all by default. Repeatable.
        keep: Layers that stay dense, such as 'layer1.*'. Repeatable.
        calibration_images: Training images to calibrate on at most; 0 for none.
        sensitivity: A layer's loss, with calibration: of its output (energy), of the answers (kl), both; best tries.
    """

    forms: Annotated[tuple[FormName, ...], Option("--form")] = ()
    keep: Annotated[tuple[str, ...], Option(metavar="PATTERN")] = ()
    calibration_images: Annotated[int, Option(min=0)] = 2000
    sensitivity: SensitivityName = "best"


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions(PlanningOptions):
    """A plan that may do without images.

    Attributes:
        calibrate: Images to plan and fit the factors on; strongly advised. As for --data.
    """

    calibrate: Annotated[str | None, Option(metavar="DATA")] = None


@dataclass(frozen=True, kw_only=True)
class PruningOptions(MultipleOptions, BudgetOptions):
    """Where ranks shall land in training.

    Attributes:
        threshold: Instead of a budget: drop singular values below this part of a layer's largest.
    """

    threshold: float | None = None
