"""Rank pruning: which ranks a network can spare, and taking them out while it trains."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..analysis.calibration import Moments
from ..analysis.running import named
from ..conversion.attached import low_rank_layers
from ..errors import BudgetError
from ..lowrank.costs import Unit, factored_cost, rank_step
from ..lowrank.decomposition import Factors, factor_tail_energies, recut, true_svd
from ..lowrank.layers import LowRank
from ..planning.allocate import Choice, allocate
from ..planning.plan import Plan
from ..planning.planner import coarsest_good, rank_grids, rank_steps
from ..planning.policies import Budget
from .optimizer_state import replace_factors
from .record import Cut


class RankPruner:
    """Takes singular directions out of a network in training, the least missed per unit of cost first.

    At a cut every layer's factors become a true SVD again (the function stays), the error of each lower rank is
    read off, and the same allocation as in planning picks ranks under the limit, never above today's. u, s, v and
    the optimizer's state for them shrink for real.

    Args:
        model: a converted network.
        plan: its plan; tells what every layer costs.
        optimizer: holds the factors; None outside of training.
        rank_multiple: ranks are cut to multiples of this; None as in `plan_ranks`.
        moments: inputs' second moments; the error is then that of the layer's output.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        optimizer: torch.optim.Optimizer | None,
        *,
        rank_multiple: int | None,
        moments: Moments | None = None,
    ) -> None:
        self._plan = plan
        self._optimizer = optimizer
        self._multiple = rank_multiple
        self.layers = {name: layer for name, layer in low_rank_layers(model).items() if name in plan.factored}
        self._moments = {
            name: moments.get((name, layer.form)) if moments is not None else None
            for name, layer in self.layers.items()
        }
        # Errors are parts of what each layer held at the start, so that layers of any scale compare: a run that goes
        # on after an interruption needs those of its start.
        self.whole = {name: max(1e-300, float(self._energies(name)[0])) for name in self.layers}

    def ranks_within(self, fraction: float, unit: Unit) -> dict[str, int]:
        """The ranks with which the network costs at most this part of the dense one, and loses the least.

        Raises:
            BudgetError: even rank one everywhere costs more.
        """
        ranks = self._ranks_within(fraction * self._plan.dense_total(unit), unit)
        if ranks is None:
            raise BudgetError(
                f"budget {unit}={fraction:g} cannot be reached by cutting ranks: with every factored layer at rank 1 "
                f"{self._least(unit) / self._plan.dense_total(unit):.3f} of the {unit.label} remain; ask for at "
                "least that or factor more layers"
            )
        return ranks

    def to_limit(self, fraction: float, unit: Unit) -> Cut:
        """Cuts until the network costs at most this part of the dense one.

        Raises:
            BudgetError: even rank one everywhere costs more.
        """
        return self.to_ranks(self.ranks_within(fraction, unit))

    def heads(self, ranks: Mapping[str, int]) -> dict[str, Tensor]:
        """Orthonormal columns that span what u keeps at lower ranks, by layer; layers that stay are left out."""
        found = {}
        for name, layer in self.layers.items():
            if ranks.get(name, layer.rank) < layer.rank:
                with named(name, "looking for what a cut leaves"):
                    kept = recut(layer.factors, ranks[name], self._moments[name]).u
                found[name] = kept.to(layer.u.dtype)
        return found

    def to_ranks(self, ranks: Mapping[str, int]) -> Cut:
        """Cuts to these ranks, by layer, where they are below today's."""
        changed = {name: rank for name, rank in ranks.items() if rank < self.layers[name].rank}
        before = {name: self.layers[name].rank for name in changed}
        if changed:
            for name, layer in self.layers.items():
                with named(name, "cutting its ranks"):
                    cut_layer(layer, ranks.get(name, layer.rank), self._moments[name], self._optimizer)
        return Cut(before, changed)

    def below_threshold(self, threshold: float) -> Cut:
        """Drops directions whose singular value is below this part of their layer's largest: no budget needed."""
        ranks = {}
        for name, layer in self.layers.items():
            with named(name, "measuring its singular values"):
                s = recut(layer.factors, layer.rank).s.reshape(-1, layer.rank)
            kept = int((s >= threshold * s[..., :1]).any(0).sum())
            step = rank_step(layer.shape, self._multiple)
            ranks[name] = min(layer.rank, -(-max(1, kept) // step) * step)
        return self.to_ranks(ranks)

    def check(self, budget: Budget) -> None:
        """Raises BudgetError now rather than in the middle of training when a budget is out of reach."""
        if self._least(budget.unit) > budget.fraction * self._plan.dense_total(budget.unit):
            self.to_limit(budget.fraction, budget.unit)

    def _least(self, unit: Unit) -> float:
        return self._others(unit) + sum(
            factored_cost(layer.shape, layer.form, 1, unit) for layer in self.layers.values()
        )

    def _others(self, unit: Unit) -> int:
        planned = sum(layer.cost(unit) for layer in self._plan.factored.values())
        return self._plan.total(unit) - planned

    def _energies(self, name: str) -> Tensor:
        with named(name, "measuring what its ranks hold"):
            return factor_tail_energies(self.layers[name].factors, self._moments[name])

    def _ranks_within(self, limit: float, unit: Unit) -> dict[str, int] | None:
        energies = {name: (self._energies(name) / self.whole[name]).tolist() for name in self.layers}

        def allocated(multiple: int | None) -> list[Choice] | None:
            tables = []
            for name, layer in self.layers.items():
                ranks = {*rank_steps(layer.rank, rank_step(layer.shape, multiple)), layer.rank}
                tables.append(
                    [
                        Choice(
                            factored_cost(layer.shape, layer.form, rank, unit),
                            energies[name][rank],
                            layer.form,
                            rank,
                        )
                        for rank in sorted(ranks)
                    ]
                )
            return allocate(tables, limit - self._others(unit))

        found = coarsest_good(map(allocated, rank_grids(self._multiple))) or allocated(1)
        if found is None:
            return None
        return {name: choice.rank or 1 for name, choice in zip(self.layers, found, strict=True)}


@torch.no_grad()
def cut_layer(layer: LowRank, rank: int, moment: Tensor | None, optimizer: torch.optim.Optimizer | None) -> None:
    """Cuts one layer to a rank; at its own rank only makes the factors a true SVD again."""
    old = Factors(*(part.detach().double() for part in layer.factors))
    new = recut(old, rank, moment)
    held = (layer.u, layer.s, layer.v)
    layer.u, layer.s, layer.v = (
        torch.nn.Parameter(value.to(parameter.dtype).contiguous(), parameter.requires_grad)
        for value, parameter in zip(new, held, strict=True)
    )
    replace_factors(optimizer, held, (layer.u, layer.s, layer.v), _StateMap(old, new))


class _StateMap:
    """How averages of the gradients of u, s and v become those of u', s' and v'.

    All three are views of one gradient, G of the dense matrix M = u diag(s) v:

        of u  G v^T diag(s)        of s  diag(u^T G v^T)        of v  diag(s) u^T G

    and the new factors lie in the span of the old ones, so that their views follow from these. The core u^T G v^T is
    known on its diagonal from s, and beside it twice, from u divided by s_j and from v divided by s_i: both are
    used, each weighed by what it was divided by.
    """

    def __init__(self, old: Factors, new: Factors) -> None:
        self._old, self._new = old, new
        # u' = u to_u, v' = to_v v
        self._to_u = torch.linalg.pinv(old.u) @ new.u
        self._to_v = new.v @ torch.linalg.pinv(old.v)

    def __call__(self, state: Factors, power: int) -> Factors:
        if power == 2:
            to_u, to_v = self._to_u.square(), self._to_v.square()
            return Factors(
                state.u @ to_u, torch.einsum("...ij,...i,...ji->...j", to_u, state.s, to_v), to_v @ state.v
            )
        old, new = self._old, self._new
        from_u, from_v = old.u.mT @ state.u, state.v @ old.v.mT
        rows, columns = old.s.unsqueeze(-1), old.s.unsqueeze(-2)
        core = (columns * from_u + rows * from_v) / (rows.square() + columns.square()).clamp_min(1e-30)
        core = core - torch.diag_embed(core.diagonal(dim1=-2, dim2=-1)) + torch.diag_embed(state.s)
        # v' may lean to directions that matter more to the inputs: there diag(s') u'^T G is no rotation of v's view.
        exact = true_svd(old.u * columns, old.v)
        lean = (new.u.mT @ exact.u) * new.s.unsqueeze(-1) / _floored(exact.s).unsqueeze(-2)
        return Factors(
            state.u @ (old.u.mT @ new.u),
            torch.einsum("...ij,...ik,...jk->...j", self._to_u, core, self._to_v),
            lean @ (exact.v @ old.v.mT) @ state.v,
        )


def _floored(s: Tensor) -> Tensor:
    """Singular values to divide by."""
    return s.clamp_min(1e-30).maximum(1e-6 * s.amax(-1, keepdim=True))
