"""Spending a budget: one choice for each layer, least total distortion, total cost within the limit.

The problem is a multiple-choice knapsack. A Lagrangian (least distortion + price * cost, price by bisection) and a
greedy fill give a good answer and a bound on the best one. Only choices whose reduced cost is within the gap between
the two can be part of a better answer; of these, all combinations that no other one beats in cost and distortion at
once are followed, layer by layer. So the answer is the best there is, and a larger limit never gives a worse one.

Source: Pisinger (1995), "A minimal algorithm for the multiple-choice knapsack problem", in its idea.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..lowrank.forms import Form

_MOST_STATES = 10_000
"""Combinations followed at a time; networks stay far below."""


@dataclass(frozen=True)
class Choice:
    """What one layer may become: a form and rank with its predicted error, or dense (form None)."""

    cost: float
    distortion: float
    form: Form | None = None
    rank: int | None = None
    error: float | None = None


def allocate(layers: Sequence[Sequence[Choice]], limit: float) -> list[Choice] | None:
    """The best choice for each layer under a limit.

    Args:
        layers: for each layer what it may become; at least one each.
        limit: most that the costs may add up to.

    Returns:
        One choice a layer with total cost <= limit, or None when even the cheapest choices cost more.
    """
    costs = [np.array([choice.cost for choice in choices], dtype=np.float64) for choices in layers]
    distortions = [np.array([choice.distortion for choice in choices], dtype=np.float64) for choices in layers]
    if sum(float(c.min()) for c in costs) > limit:
        return None
    price = _price(costs, distortions, limit)
    picks = _cheapest(costs, distortions, price)
    picks = _fill(costs, distortions, picks, limit - _sum(costs, picks))
    better = _search(costs, distortions, price, limit, _sum(distortions, picks))
    return [choices[pick] for choices, pick in zip(layers, better or picks, strict=True)]


def _price(costs: list[np.ndarray], distortions: list[np.ndarray], limit: float) -> float:
    """The lowest price of cost at which the choices that are best at this price keep the limit."""

    def too_much(price: float) -> bool:
        return _sum(costs, _cheapest(costs, distortions, price)) > limit

    if not too_much(0.0):
        return 0.0
    low, high = 0.0, 1.0 / max(1.0, min(float(c.max()) for c in costs))
    while too_much(high):
        low, high = high, high * 4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if too_much(middle) else (low, middle)
    return high


def _cheapest(costs: list[np.ndarray], distortions: list[np.ndarray], price: float) -> list[int]:
    """The best choice of each layer at a price of cost; ties go to the cheaper one."""
    return [int(np.lexsort((c, d + price * c))[0]) for c, d in zip(costs, distortions, strict=True)]


def _sum(values: list[np.ndarray], picks: list[int]) -> float:
    return float(sum(float(v[pick]) for v, pick in zip(values, picks, strict=True)))


def _search(
    costs: list[np.ndarray], distortions: list[np.ndarray], price: float, limit: float, best: float
) -> list[int] | None:
    """Choices whose distortion is below `best`, the least there is; None when nothing is."""
    reduced = [d + price * c for c, d in zip(costs, distortions, strict=True)]
    least = [float(r.min()) for r in reduced]
    # With r a layer's reduced cost above its least: distortion = bound + sum of r + price * (what the limit leaves).
    gap = best - (sum(least) - price * limit)
    gap += 1e-12 * (abs(best) + price * abs(limit))  # rounding
    usable = [np.flatnonzero(r - low <= gap) for r, low in zip(reduced, least, strict=True)]
    cheapest = np.array([float(c.min()) for c in costs])
    left = np.concatenate([np.cumsum(cheapest[::-1])[::-1][1:], [0.0]])  # least that the layers to come cost
    cost, distortion, excess = np.zeros(1), np.zeros(1), np.zeros(1)
    trail: list[tuple[np.ndarray, np.ndarray]] = []
    for index, options in enumerate(usable):
        more = reduced[index][options] - least[index]
        new_excess = (excess[:, None] + more).ravel()
        new_cost = (cost[:, None] + costs[index][options]).ravel()
        alive = np.flatnonzero((new_excess <= gap) & (new_cost + left[index] <= limit))
        if not len(alive):
            return None
        new_cost, new_excess = new_cost[alive], new_excess[alive]
        new_distortion = (distortion[:, None] + distortions[index][options]).ravel()[alive]
        order = np.lexsort((new_distortion, new_cost))
        lowest = np.minimum.accumulate(new_distortion[order])
        order = order[np.concatenate([[True], lowest[1:] < lowest[:-1]])]
        if len(order) > _MOST_STATES:  # near-exact from here on: those closest to the bound
            order = np.sort(order[np.argsort(new_excess[order], kind="stable")[:_MOST_STATES]])
        parent, choice = np.divmod(alive[order], len(options))
        trail.append((parent, options[choice]))
        cost, distortion, excess = new_cost[order], new_distortion[order], new_excess[order]
    at = int(distortion.argmin())
    if not distortion[at] < best:
        return None
    picks = []
    for parent, choice in reversed(trail):
        picks.append(int(choice[at]))
        at = int(parent[at])
    return picks[::-1]


def _fill(costs: list[np.ndarray], distortions: list[np.ndarray], picks: list[int], slack: float) -> list[int]:
    """Takes the best gain per cost that still fits, until nothing does."""
    picks = list(picks)
    while True:
        best: tuple[float, int, int] | None = None
        for layer, (cost, distortion, pick) in enumerate(zip(costs, distortions, picks, strict=True)):
            extra = cost - cost[pick]
            gain = distortion[pick] - distortion
            usable = (gain > 0) & (extra <= slack)
            if not usable.any():
                continue
            # Something better for nothing (or less) comes before everything else.
            rate = np.where(usable, gain / np.maximum(extra, 1e-12), -np.inf)
            option = int(rate.argmax())
            if best is None or rate[option] > best[0]:
                best = (float(rate[option]), layer, option)
        if best is None:
            return picks
        _, layer, option = best
        slack -= float(costs[layer][option] - costs[layer][picks[layer]])
        picks[layer] = option
