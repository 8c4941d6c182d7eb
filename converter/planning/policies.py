"""What a user may ask of a plan: a rank rule, or a budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import BudgetError
from ..lowrank.costs import Unit


def _fraction(what: str, value: float) -> None:
    # The comparison is written so that NaN fails it.
    if not 0.0 < value <= 1.0:
        example = f"{what.split()[-1]}=0.5"
        raise BudgetError(f"{what}={value:g} is not in (0, 1]; give the part to keep, for example {example}")


@dataclass(frozen=True)
class FixedRank:
    """The same rank for every layer, as far as it saves anything."""

    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise BudgetError(f"rank {self.rank} is below 1; give a rank of at least 1")

    def __str__(self) -> str:
        return f"rank={self.rank}"


@dataclass(frozen=True)
class RankRatio:
    """This part of each layer's full rank; 1.0 converts everything and loses nothing (and saves nothing)."""

    ratio: float

    def __post_init__(self) -> None:
        _fraction("ratio", self.ratio)

    def __str__(self) -> str:
        return f"ratio={self.ratio:g}"


@dataclass(frozen=True)
class Energy:
    """The smallest rank that keeps this part of each layer's energy (sum of squared singular values)."""

    keep: float

    def __post_init__(self) -> None:
        _fraction("energy", self.keep)

    def __str__(self) -> str:
        return f"energy={self.keep:g}"


@dataclass(frozen=True)
class MacBudget:
    """At most this part of the dense network's MACs."""

    fraction: float
    unit: ClassVar[Unit] = Unit.MACS

    def __post_init__(self) -> None:
        _fraction("budget macs", self.fraction)

    def __str__(self) -> str:
        return f"macs={self.fraction:g}"


@dataclass(frozen=True)
class ParamBudget:
    """At most this part of the dense network's parameters."""

    fraction: float
    unit: ClassVar[Unit] = Unit.PARAMS

    def __post_init__(self) -> None:
        _fraction("budget params", self.fraction)

    def __str__(self) -> str:
        return f"params={self.fraction:g}"


@dataclass(frozen=True)
class LatencyBudget:
    """At most this part of the dense network's latency in ONNX Runtime on this machine."""

    fraction: float

    def __post_init__(self) -> None:
        _fraction("budget latency", self.fraction)

    def __str__(self) -> str:
        return f"latency={self.fraction:g}"


Budget = MacBudget | ParamBudget
Policy = FixedRank | RankRatio | Energy | MacBudget | ParamBudget | LatencyBudget


def parse_budget(text: str) -> Budget | LatencyBudget:
    """Reads "macs=0.5", "params=0.5" or "latency=0.5".

    Raises:
        BudgetError: another unit, or not a fraction.
    """
    unit, equals, number = text.partition("=")
    kinds: dict[str, type[MacBudget] | type[ParamBudget] | type[LatencyBudget]] = {
        "macs": MacBudget,
        "params": ParamBudget,
        "latency": LatencyBudget,
    }
    if not equals or unit.strip().lower() not in kinds:
        raise BudgetError(f"budget {text!r} is not UNIT=FRACTION with unit macs, params or latency; try macs=0.5")
    try:
        fraction = float(number)
    except ValueError:
        raise BudgetError(f"budget {text!r}: {number!r} is not a number; try {unit}=0.5") from None
    return kinds[unit.strip().lower()](fraction)
