"""When ranks are cut, how far, and what is done on the way there."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..lowrank.costs import Unit, factored_cost
from ..planning.plan import Plan
from .config import FinetuneConfig, RankPenalty
from .losses import rank_penalty
from .pruner import RankPruner
from .record import Cut

_AIMED = (RankPenalty.TAIL, RankPenalty.FADE)


class Cuts:
    """The cuts of a run: evenly spread over its first part, large ones first.

    Some penalties aim at what the next cut will take: after each cut the next one's ranks are chosen.

    Args:
        pruner: takes ranks out.
        plan: of the network at the start.
        config: how often and how far.
        steps: that the run will have.
    """

    def __init__(self, pruner: RankPruner, plan: Plan, config: FinetuneConfig, steps: int) -> None:
        self._pruner = pruner
        self._config = config
        self._start = {unit: plan.fraction(unit) for unit in Unit}
        self._pressure = _pressure(pruner)
        self._done = 0 if config.prunes else config.cuts
        self._ranks: dict[str, int] = {}
        self._heads: dict[str, Tensor] = {}
        self.spread_over(steps)
        self._aim()

    @property
    def over(self) -> bool:
        """Whether all have been made."""
        return self._done >= self._config.cuts

    def spread_over(self, steps: int) -> None:
        """Plans the last one for a run of so many steps."""
        self._last = max(1, int(self._config.prune_until * steps))

    def due(self, step: int) -> bool:
        """Whether one is due after this step (from 1)."""
        return not self.over and step >= self._next

    def cut(self, step: int, *, all_of_them: bool = False) -> Cut:
        """Makes the one that is due, or goes straight to the end."""
        config = self._config
        on_time = self._done + 1
        self._done = config.cuts if all_of_them else max(on_time, min(config.cuts, config.cuts * step // self._last))
        if config.threshold is not None:
            found = self._pruner.below_threshold(config.threshold)
        elif self._ranks and self._done == on_time:
            found = self._pruner.to_ranks(self._ranks)
        else:
            found = self._pruner.to_ranks(self._ranks_after(self._done))
        self._aim()
        return found

    def state(self) -> dict[str, Any]:
        """Where they are."""
        return {
            "done": self._done,
            "last": self._last,
            "ranks": dict(self._ranks),
            "heads": dict(self._heads),
            "whole": self._pruner.whole,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a state."""
        self._done, self._last, self._ranks = state["done"], state["last"], dict(state["ranks"])
        layers = self._pruner.layers
        self._heads = {name: head.to(layers[name].u, copy=True) for name, head in state["heads"].items()}
        self._pruner.whole = dict(state["whole"])

    def penalty(self) -> Tensor:
        """The rank loss, () float32, where there is one."""
        return rank_penalty(self._pruner.layers, self._pressure, self._config.rank_penalty, self._ranks)

    @property
    def presses(self) -> bool:
        """Whether there is a rank loss now."""
        losses = (RankPenalty.HOYER, RankPenalty.NUCLEAR, RankPenalty.TAIL)
        return not self.over and self._config.rank > 0 and self._config.rank_penalty in losses

    @torch.no_grad()
    def after_step(self, step: int, rate: float) -> None:
        """What a penalty does to the factors themselves.

        Args:
            step: that was made, from 1.
            rate: its learning rate.
        """
        kind = self._config.rank_penalty
        if self.over:
            return
        if kind is RankPenalty.PROXIMAL:
            trained = {name: layer for name, layer in self._pruner.layers.items() if layer.s.requires_grad}
            for name, layer in trained.items():
                least = rate * self._config.rank * self._pressure[name]
                layer.s.copy_(layer.s.sign() * (layer.s.abs() - least).clamp_min(0.0))
        for name, head in self._heads.items():  # of a straight line to zero, so much is left after this step
            u = self._pruner.layers[name].u
            u.lerp_(head @ (head.mT @ u), 1.0 / max(1, self._next - step + 1))

    @property
    def _next(self) -> int:
        """The step after which the next one is due."""
        return math.ceil((self._done + 1) * self._last / self._config.cuts)

    def _aim(self) -> None:
        self._ranks, self._heads = {}, {}
        if self.over or self._config.budget is None or self._config.rank_penalty not in _AIMED:
            return
        self._ranks = self._ranks_after(self._done + 1)
        if self._config.rank_penalty is RankPenalty.FADE:
            self._heads = self._pruner.heads(self._ranks)

    def _ranks_after(self, cuts: int) -> dict[str, int]:
        budget = self._config.budget
        assert budget is not None
        limit = scheduled(self._start[budget.unit], budget.fraction, cuts / self._config.cuts)
        return self._pruner.ranks_within(max(budget.fraction, limit), budget.unit)


def scheduled(start: float, target: float, done: float) -> float:
    """The part of the cost allowed now: from start to target, fast at first.

    Args:
        start, target: parts of the dense cost.
        done: how much of the pruning time has passed, 0..1.

    Source: the cubic schedule of Zhu and Gupta (2017).
    """
    return target + (start - target) * (1.0 - min(1.0, max(0.0, done))) ** 3


def told(cut: Cut, before: float, after: float) -> Cut:
    """A cut with the jump of the loss."""
    return replace(cut, jump=after - before)


def _pressure(pruner: RankPruner) -> dict[str, float]:
    """w_l: each layer's MACs per rank, normalised to a mean of 1."""
    costs = {
        name: factored_cost(layer.shape, layer.form, 1, Unit.MACS)
        - factored_cost(layer.shape, layer.form, 0, Unit.MACS)
        for name, layer in pruner.layers.items()
    }
    mean = sum(costs.values()) / max(1, len(costs)) or 1.0
    return {name: cost / mean for name, cost in costs.items()}
