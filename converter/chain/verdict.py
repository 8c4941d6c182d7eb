"""Whether a converted network still answers as the dense one does, and which budget would hold where it does not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..analysis.agreement import Agreement, agreement
from ..conversion.converting import convert
from ..conversion.polishing import Polish
from ..planning.plan import Plan
from ..planning.policies import MacBudget, ParamBudget, Policy
from .planned import Planned

_HOLDS = 0.8
"""Part of the answers that must be the dense network's."""

_TRIES = 2
"""Gentler budgets to try where the wanted one does not hold: half of the cut, then a quarter of it more or less."""


@dataclass(frozen=True)
class Polished:
    """What polishing found, and what it did.

    Attributes:
        start: how often the network as converted, in closed form, gave the dense one's answers.
        done: steps and distances.
    """

    start: Agreement
    done: Polish

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**self.done.to_dict(), "start": self.start.to_dict()}


@dataclass(frozen=True)
class Verdict:
    """What images that a network was not fitted on say of it.

    Attributes:
        agreement: with the dense network.
        advice: which budget would hold; empty where this one does, or nothing was tried.
        polished: what was there before polishing; None without it.
    """

    agreement: Agreement
    advice: str = ""
    polished: Polished | None = None

    def __str__(self) -> str:
        parts = [f"the same answer as the dense network on {self.agreement} that it was not fitted on"]
        if self.polished is not None:
            start, done = self.polished.start, self.polished.done
            parts.append(
                f"{100 * start.part:.1f} % before polishing ({done.kept} of {done.steps} steps; "
                f"{start.nats:.3g} nats apart, now {self.agreement.nats:.3g})"
                if done.kept
                else f"{done.steps} steps of polishing brought it no nearer"
            )
        return "; ".join([*parts, self.advice] if self.advice else parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **self.agreement.to_dict(),
            "advice": self.advice or None,
            "polish": None if self.polished is None else self.polished.to_dict(),
        }


def judge(
    dense: nn.Module,
    converted: nn.Module,
    planned: Planned,
    wanted: Policy | Plan,
    polished: Polished | None = None,
) -> Verdict | None:
    """Compares the answers of both networks, and tries gentler budgets where too few are the same.

    Args:
        dense, converted: on one device.
        planned: the plan with its images.
        wanted: what it was made for.
        polished: what was before, where the network has been polished.

    Returns:
        None where there are no images to judge by.
    """
    if planned.held_out is None:
        return None
    found = agreement(converted, dense, planned.held_out)
    if found.part >= _HOLDS or planned.replan is None or not isinstance(wanted, (MacBudget, ParamBudget)):
        return Verdict(found, polished=polished)
    part, step, holds, gentlest = 0.5, 0.25, "", ""
    for _ in range(_TRIES):
        gentler = replace(wanted, fraction=round(1 - part * (1 - wanted.fraction), 4))
        plan = planned.replan(gentler)
        tried = agreement(convert(dense, plan, calibration=planned.calibration), dense, planned.held_out)
        if tried.part >= _HOLDS:
            holds = f"{gentler} would hold ({tried})"
        elif not holds:
            gentlest = f"{gentler} still ({tried})"
        part, step = part + (step if tried.part >= _HOLDS else -step), step / 2
    advice = holds or f"and so is {gentlest}"
    return Verdict(found, f"{wanted} is too tight without training{':' if holds else ','} {advice}", polished)
