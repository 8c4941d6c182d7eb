"""Plans worth a trial: different ones, none of which promises to cost the answers much more than another."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from ..analysis.calibration import Calibration, Energies
from ..analysis.losses import Losses
from ..planning.plan import Plan
from .choosing import choose_plan

_DRAWS = 5
"""Distortions to make plans of, for each plan to try: where few layers are cut, many of the plans are the same."""

_WORSE = 1.25
"""Nats that a plan may promise, relative to the lowest of all."""


class Candidate(NamedTuple):
    """A plan, and what it minimises the sum of."""

    plan: Plan
    distortions: Energies


def best_plan(
    model: nn.Module, losses: Losses, calibration: Calibration, to_plan: Callable[[Energies], Plan], *, trials: int
) -> Candidate:
    """The plan that holds best on images that it was not fitted on.

    Args:
        model: the dense network; untouched.
        losses: of its layers.
        calibration: of it.
        to_plan: makes a plan that minimises the sum of these distortions.
        trials: plans to try, at most; `usual_trials` of them suit the network.

    Raises:
        ModelError: as `convert`.
    """
    found = candidates(losses, trials, to_plan)
    return found[choose_plan(model, [candidate.plan for candidate in found], calibration)]


def candidates(losses: Losses, count: int, to_plan: Callable[[Energies], Plan]) -> list[Candidate]:
    """Plans to try, the one to take without a trial first.

    Args:
        losses: of the network's layers.
        count: how many at most, >= 1.
        to_plan: makes a plan that minimises the sum of these distortions.
    """
    if count == 1:
        (first,) = losses.to_try(1)
        return [Candidate(to_plan(first), first)]
    different: dict[object, Candidate] = {}
    for distortions in losses.to_try(count * _DRAWS):
        found = Candidate(to_plan(distortions), distortions)
        different.setdefault(found.plan.layers, found)
    promised = {layers: _nats(losses, found.plan) for layers, found in different.items()}
    most = _WORSE * min(promised.values())
    return [found for layers, found in different.items() if promised[layers] <= most][:count]


def _nats(losses: Losses, plan: Plan) -> float:
    """What its layers cost the answers, one at a time."""
    cut = [(name, layer.form, layer.rank) for name, layer in plan.factored.items()]
    return sum(float(losses.nats[name, form][rank]) for name, form, rank in cut if form and rank)
