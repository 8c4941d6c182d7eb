"""Spending a budget: one choice for each layer, least total distortion, total cost within the limit.

The problem is a multiple-choice knapsack. A Lagrangian (least distortion + price * cost, price by bisection) gives
the best choices on the lower convex hull; what is left of the limit is then spent greedily.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .forms import Form


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
    costs = [np.array([choice.cost for choice in choices]) for choices in layers]
    distortions = [np.array([choice.distortion for choice in choices]) for choices in layers]
    if sum(float(c.min()) for c in costs) > limit:
        return None

    def at(price: float) -> list[int]:
        # Ties go to the cheaper choice.
        return [int(np.lexsort((c, d + price * c))[0]) for c, d in zip(costs, distortions, strict=True)]

    def spent(picks: list[int]) -> float:
        return sum(float(c[pick]) for c, pick in zip(costs, picks, strict=True))

    picks = at(0.0)
    if spent(picks) > limit:
        low, high = 0.0, 1.0 / max(1.0, min(float(c.max()) for c in costs))
        while spent(at(high)) > limit:
            low, high = high, high * 4
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if spent(at(middle)) <= limit else (middle, high)
        picks = at(high)
    picks = _fill(costs, distortions, picks, limit - spent(picks))
    return [choices[pick] for choices, pick in zip(layers, picks, strict=True)]


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
