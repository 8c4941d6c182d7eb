"""What a layer costs, dense or factored. One MAC is one multiply-add; s is counted as folded into u."""

from __future__ import annotations

from enum import Enum

from .forms import Form, factor_shapes, full_rank, plain_shapes
from .shapes import LayerShape

_WIDE = 64
"""Channels of a layer."""


class Unit(str, Enum):
    """What a budget counts."""

    MACS = "macs"
    PARAMS = "params"

    def __str__(self) -> str:
        return self.value

    @property
    def label(self) -> str:
        """The unit as it stands in a sentence."""
        return "MACs" if self is Unit.MACS else "parameters"


def dense_cost(shape: LayerShape, unit: Unit) -> int:
    """Cost of the plain layer, or of both layers of a product, for one sample."""
    return sum(one.macs if unit is Unit.MACS else one.params for one in plain_shapes(shape))


def factored_cost(shape: LayerShape, form: Form, rank: int, unit: Unit) -> int:
    """Cost of both factors together, for one sample."""
    first, second = factor_shapes(shape, form, rank)
    return dense_cost(first, unit) + dense_cost(second, unit)


def rank_step(shape: LayerShape, multiple: int | None) -> int:
    """Ranks worth trying are multiples of this.

    Kernels compute channels in blocks of 8 or 16, and a block that is not full takes as long as one that is. A layer
    of 64 channels has ranks enough in steps of 16; a thin one would have hardly any.

    Args:
        shape: of the layer.
        multiple: as the user says; None for 8, or 16 in wide layers.
    """
    if multiple is not None:
        return multiple
    return 16 if min(shape.inputs, shape.outputs) // shape.groups >= _WIDE else 8


def break_even_rank(shape: LayerShape, form: Form) -> int:
    """The largest rank that costs less than the dense layer in MACs and in parameters; 0 when none does."""
    ranks = []
    for unit in Unit:
        base = factored_cost(shape, form, 0, unit)  # the bias stays, whatever the rank
        per_rank = factored_cost(shape, form, 1, unit) - base
        saving = dense_cost(shape, unit) - base
        ranks.append((saving - 1) // per_rank if per_rank > 0 else 0)
    return max(0, min(*ranks, full_rank(shape, form)))
