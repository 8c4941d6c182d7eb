"""What a plan comes to, as plain JSON values."""

from __future__ import annotations

from typing import Any

from ..lowrank.costs import Unit
from ..planning.plan import Plan


def costs(plan: Plan) -> dict[str, Any]:
    """Parameters and MACs before and after, as plain JSON values."""
    return {
        unit.value: {"dense": plan.dense_total(unit), "compressed": plan.total(unit), "part": plan.fraction(unit)}
        for unit in (Unit.PARAMS, Unit.MACS)
    }


def ranks(plan: Plan) -> dict[str, str]:
    """Form and rank of each factored layer, such as "spatial:16"."""
    return {name: f"{layer.form}:{layer.rank}" for name, layer in plan.factored.items()}
