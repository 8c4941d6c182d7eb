"""Planning: from a survey and a policy to a plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatch

from torch import Tensor

from ..analysis.calibration import Energies
from ..analysis.running import named
from ..analysis.surveying import Layer, Survey
from ..errors import BudgetError, ModelError, PlanError
from ..lowrank.costs import Unit, break_even_rank, dense_cost, factored_cost, rank_step
from ..lowrank.decomposition import tail_energies
from ..lowrank.forms import Form, asked_of, full_rank, matricise
from ..lowrank.shapes import LayerShape
from .allocate import Choice, allocate
from .layer_times import LayerTimes
from .plan import LayerPlan, Plan
from .policies import Energy, FixedRank, LatencyBudget, MacBudget, ParamBudget, Policy, RankRatio

_WORTH_IT = 0.9
"""Finer ranks are taken where they leave less than this part of the distortion."""


def plan_ranks(
    layers: Survey,
    policy: Policy,
    *,
    forms: Iterable[Form] = tuple(Form),
    keep: Sequence[str] = (),
    rank_multiple: int | None = None,
    energies: Energies | None = None,
    distortions: Energies | None = None,
    times: LayerTimes | None = None,
) -> Plan:
    """Chooses a form and rank for each layer.

    Args:
        layers: what `survey` found.
        policy: a budget, or a rule for ranks.
        forms: forms that may be used; a layer that has none of them (a 1 x 1 kernel has only `channel`) may use
            any of its own.
        keep: name patterns (`layer1.*`) of layers that stay dense.
        rank_multiple: under a budget, ranks are multiples of this, since a rank in between costs as much time as
            the next multiple; finer ranks are used only where the budget cannot be reached otherwise. None for 8,
            and 16 in layers of 64 channels or more, if that loses hardly more than 8 everywhere.
        energies: squared errors by (layer, form) as calibration found them, or as `foretell` did, which then hold on
            other images, too; by default those of the weights.
        distortions: what a budget minimises the sum of, by (layer, form), as `foretell` found them; by default the
            lost part of each layer's energy.
        times: of the layers on this machine; a budget on latency needs them.

    Returns:
        A plan for every layer. Under a budget its total is at or below the budget.

    Raises:
        BudgetError: the budget cannot be reached; says what can.
        PlanError: a `keep` pattern matches no layer.
        ModelError: a weight is not finite.
    """
    if rank_multiple is not None and rank_multiple < 1:
        raise PlanError(f"rank multiple {rank_multiple} is below 1; give 1 to allow every rank, or 8")
    for pattern in keep:
        if not any(_matches(layer, [pattern]) for layer in layers):
            raise PlanError(f"keep pattern {pattern!r} matches no layer; see dprp survey for the names")
    wanted = tuple(forms)
    options = {
        layer.name: _options(layer, wanted, energies, distortions)
        for layer in layers
        if layer.reason is None and not _matches(layer, keep)
    }
    if isinstance(policy, LatencyBudget):
        if times is None:
            raise BudgetError(f"budget {policy} needs measured times of the layers; use dprp plan, or pass times=")
        chosen = _within_time(options, policy, times)
    elif isinstance(policy, (MacBudget, ParamBudget)):
        chosen = _within(layers, options, policy, rank_multiple)
    else:
        ruled = {name: _by_rule(of_layer, policy) for name, of_layer in options.items()}
        chosen = {name: choice for name, choice in ruled.items() if choice is not None}
    plans = []
    for layer in layers:
        pick = chosen.get(layer.name)
        reason = layer.reason or ("kept by name" if _matches(layer, keep) else None)
        plan = LayerPlan(layer.name, layer.params, layer.macs, layer.shape, product=layer.product)
        if pick is None or pick.form is None:
            plan = replace(plan, reason=reason or "no rank within the policy makes it cheaper, or worth it")
        else:
            plan = replace(plan, form=pick.form, rank=pick.rank, error=pick.error)
        plans.append(plan)
    whole = Plan(tuple(plans), layers.params, layers.macs, layers.input_shape, str(policy))
    return whole if times is None else with_times(whole, times)


def headroom(plan: Plan, factor: float = 1.5, *, rank_multiple: int | None = None) -> Plan:
    """The same plan at higher ranks, for fine-tuning to choose which to drop.

    Args:
        plan: where training shall end up.
        factor: of each layer's rank, >= 1.
        rank_multiple: ranks are rounded up to multiples of this; None as in `plan_ranks`.

    Returns:
        A plan with no layer above its break-even rank (or its own rank, where that is higher already).
    """
    ranks = {}
    for name, layer in plan.factored.items():
        assert layer.shape is not None
        assert layer.form is not None
        assert layer.rank is not None
        step = rank_step(layer.shape, rank_multiple)
        wider = -(-int(layer.rank * factor) // step) * step
        ranks[name] = max(layer.rank, min(wider, break_even_rank(layer.shape, layer.form)))
    return plan.with_ranks(ranks)


class _Option:
    """One layer in one form: its relative error, and what that costs the network, at each rank."""

    def __init__(self, layer: Layer, form: Form, energy: Tensor | None, distortion: Tensor | None) -> None:
        assert layer.shape is not None
        assert layer.weight is not None
        if not bool(layer.weight.isfinite().all()):
            raise ModelError(f"{layer.name}: its weight holds values that are not finite; repair the checkpoint")
        if energy is None:
            with named(layer.name, "its decomposition"):
                energy = tail_energies(matricise(layer.weight, layer.shape, form))
        self.shape: LayerShape = layer.shape
        self.form = form
        self.errors: list[float] = (energy / energy[0].clamp_min(1e-300)).tolist()
        self.distortions: list[float] = self.errors if distortion is None else distortion.tolist()
        self.full = full_rank(layer.shape, form)
        self.break_even = break_even_rank(layer.shape, form)
        # Cost is a straight line in the rank.
        self._base = {unit: factored_cost(layer.shape, form, 0, unit) for unit in Unit}
        self._slope = {unit: factored_cost(layer.shape, form, 1, unit) - base for unit, base in self._base.items()}

    def at(self, rank: int, unit: Unit) -> Choice:
        return self.timed(rank, self._base[unit] + rank * self._slope[unit])

    def timed(self, rank: int, cost: float) -> Choice:
        return Choice(cost, self.distortions[rank], self.form, rank, self.errors[rank])


def _options(
    layer: Layer, wanted: tuple[Form, ...], energies: Energies | None, distortions: Energies | None
) -> list[_Option]:
    assert layer.shape is not None
    return [
        _Option(
            layer,
            form,
            None if energies is None else energies.get((layer.name, form)),
            None if distortions is None else distortions.get((layer.name, form)),
        )
        for form in asked_of(layer.shape, wanted)
    ]


def _matches(layer: Layer, patterns: Sequence[str]) -> bool:
    names = (layer.name, *layer.aliases, *filter(None, layer.product or ()))
    return any(fnmatch(name, pattern) for name in names for pattern in patterns)


def _by_rule(options: list[_Option], rule: FixedRank | RankRatio | Energy) -> Choice | None:
    """Of the forms, the one that is cheapest in MACs at the rank that the rule gives it."""
    choices = []
    for option in options:
        if isinstance(rule, FixedRank):
            rank = min(rule.rank, option.break_even)
        elif isinstance(rule, RankRatio):
            rank = max(1, round(rule.ratio * option.full))
        else:
            lost = 1.0 - rule.keep
            rank = max(1, next(r for r, error in enumerate(option.errors) if error <= lost + 1e-12))
        saves = rank <= option.break_even or (isinstance(rule, RankRatio) and rule.ratio == 1.0)
        if rank > 0 and saves:
            choices.append(option.at(rank, Unit.MACS))
    return min(choices, key=lambda choice: (choice.cost, choice.distortion), default=None)


def _within_time(options: dict[str, list[_Option]], budget: LatencyBudget, times: LayerTimes) -> dict[str, Choice]:
    """As `_within`, in milliseconds; what is not faster than the dense layer is no choice."""
    limit = budget.fraction * times.network_ms
    fixed = times.network_ms - sum(times.dense(name) for name in options)
    tables = []
    for name, of_layer in options.items():
        choices = [Choice(times.dense(name), 0.0)]
        for option in of_layer:
            ranks = [rank for layer, form, rank in times.layers_ms if layer == name and form is option.form]
            timed = [option.timed(rank, times.layers_ms[name, option.form, rank]) for rank in ranks]
            choices += [choice for choice in timed if choice.cost < times.dense(name)]
        tables.append(choices)
    found = allocate(tables, limit - fixed)
    if found is not None:
        return dict(zip(options, found, strict=True))
    least = fixed + sum(min(choice.cost for choice in choices) for choices in tables)
    raise BudgetError(
        f"budget {budget} cannot be reached: with every layer at its fastest {least / times.network_ms:.3f} of the "
        "latency remains; ask for at least that"
    )


def with_times(plan: Plan, times: LayerTimes) -> Plan:
    """The plan with the milliseconds that each layer, and the network, is foretold to take."""
    layers = tuple(
        replace(
            layer,
            dense_ms=times.dense(layer.name),
            ms=times.layers_ms.get((layer.name, layer.form, layer.rank or 0), times.dense(layer.name)),
        )
        for layer in plan
    )
    saved = sum((layer.dense_ms or 0.0) - (layer.ms or 0.0) for layer in layers)
    return replace(plan, layers=layers, dense_ms=times.network_ms, ms=times.network_ms - saved)


def rank_steps(most: int, multiple: int) -> list[int]:
    """Ranks worth trying up to `most`: multiples, or every rank where there is no room for one."""
    return list(range(multiple, most + 1, multiple)) or list(range(1, most + 1))


def rank_grids(multiple: int | None) -> tuple[int | None, ...]:
    """Multiples to plan with, the coarsest first."""
    return (None, 8) if multiple is None else (multiple,)


def coarsest_good(plans: Iterable[list[Choice] | None]) -> list[Choice] | None:
    """The first of plans, from coarse to fine, that loses hardly more than the finer ones; None where there is none.

    Steps are too coarse where a network has few layers, and its ranks do not add up to what a budget has room for.
    """
    best = None
    for plan in plans:
        if plan is not None and (best is None or total_distortion(plan) < _WORTH_IT * total_distortion(best)):
            best = plan
    return best


def total_distortion(plan: Iterable[Choice]) -> float:
    """Of all layers."""
    return sum(choice.distortion for choice in plan)


def _within(
    layers: Survey, options: dict[str, list[_Option]], budget: MacBudget | ParamBudget, multiple: int | None
) -> dict[str, Choice]:
    unit = budget.unit
    total = layers.macs if unit is Unit.MACS else layers.params
    limit = budget.fraction * total
    costs: dict[str, int] = {}
    for layer in layers:
        if layer.name in options:
            assert layer.shape is not None
            costs[layer.name] = dense_cost(layer.shape, unit)
    fixed = total - sum(costs.values())

    def tables(step: int | None) -> list[list[Choice]]:
        return [
            [Choice(costs[name], 0.0)]
            + [
                option.at(rank, unit)
                for option in of_layer
                for rank in rank_steps(option.break_even, rank_step(option.shape, step))
            ]
            for name, of_layer in options.items()
        ]

    grids, fine = [tables(step) for step in rank_grids(multiple)], tables(1)
    edge = sum(min(choice.cost for choice in choices) for choices in grids[-1])
    # Below the least that multiples can cost, every rank may be used; and just above, that may still be better.
    on_a_grid = coarsest_good([allocate(grid, limit - fixed) for grid in grids])
    plans = [plan for plan in (on_a_grid, allocate(fine, min(limit - fixed, edge - 1))) if plan is not None]
    if plans:
        return dict(zip(options, min(plans, key=total_distortion), strict=True))
    least = fixed + sum(min(choice.cost for choice in choices) for choices in fine)
    raise BudgetError(
        f"budget {budget} cannot be reached: with every layer at its smallest rank "
        f"{least / total:.3f} of the {unit.label} remain; ask for at least that"
    )
