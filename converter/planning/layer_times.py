"""Latency as a cost: what each layer takes, dense and in every form and rank that a plan may choose.

Nothing is measured here. `chains_to_time` says what a planner wants to know, somebody measures it, and `LayerTimes`
brings the answers back as plain data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..analysis.surveying import Survey
from ..errors import BudgetError
from ..lowrank.costs import break_even_rank, rank_step
from ..lowrank.forms import Form, asked_of, factor_shapes, plain_shapes
from ..lowrank.shapes import LayerShape

Variant = tuple[str, Form | None, int]
"""A layer by name, with form and rank; (name, None, 0) is the dense layer."""

_RANKS_PER_FORM = 12

_TIMED = ("conv2d", "linear")
"""Kinds of layers that a latency table can hold."""


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds on one machine.

    Attributes:
        network_ms: one run of the dense network.
        layers_ms: of each variant, all its calls together, on the same scale as `network_ms`.
    """

    network_ms: float
    layers_ms: Mapping[Variant, float]

    def dense(self, name: str) -> float:
        """Of the plain layer; 0 when it never runs."""
        return self.layers_ms.get((name, None, 0), 0.0)


def chains_to_time(
    layers: Survey, rank_multiple: int | None, forms: Iterable[Form] = tuple(Form)
) -> dict[Variant, tuple[LayerShape, ...]]:
    """What a plan under a latency budget chooses from.

    Args:
        layers: the survey.
        rank_multiple: ranks are multiples of this, or of a multiple of it where that would be more than a dozen; None
            as in `plan_ranks`.
        forms: that may be used.

    Returns:
        For each variant the plain layers that it runs, with the maps of all their calls.

    Raises:
        BudgetError: the network has layers of a kind whose time cannot be foretold.
    """
    asked = {*forms}
    found: dict[Variant, tuple[LayerShape, ...]] = {}
    for layer in layers:
        if layer.macs and (layer.shape is None or layer.shape.kind not in _TIMED):
            raise BudgetError(f"{layer.name}: the latency of a {layer.kind} is not known; use a budget of macs")
        if layer.shape is None or not layer.shape.calls:
            continue
        found[layer.name, None, 0] = plain_shapes(layer.shape)
        if layer.reason is not None:
            continue
        for form in asked_of(layer.shape, asked):
            for rank in timed_ranks(break_even_rank(layer.shape, form), rank_step(layer.shape, rank_multiple)):
                found[layer.name, form, rank] = factor_shapes(layer.shape, form, rank)
    return found


def timed_ranks(most: int, multiple: int) -> list[int]:
    """At most a dozen multiples up to `most`; every rank where there is no room for a multiple."""
    if most < multiple:
        return list(range(1, most + 1))
    step = -(-most // (_RANKS_PER_FORM * multiple)) * multiple
    return list(range(step, most + 1, step))
