"""A plan: for each layer its form and rank, or why it stays dense. Plain data that prints and reads as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...files import quoted
from ..analysis.products import Products
from ..errors import PlanError
from ..json_values import number, printable, sequence, whole
from ..lowrank.costs import Unit, dense_cost, factored_cost
from ..lowrank.forms import Form, forms_for, forms_of, full_rank
from ..lowrank.products import Product
from ..lowrank.shapes import LayerShape
from ..tables import table

FORMAT_VERSION = 1
_MOST_LAYERS = 100_000


@dataclass(frozen=True)
class LayerPlan:
    """What becomes of one layer.

    Attributes:
        name: where it is.
        params, macs: what it costs dense.
        shape: its geometry; None for kinds that cannot be factored.
        form, rank: what it becomes; both None when it stays dense.
        reason: why it stays dense.
        error: predicted part of its output energy that is lost (None when dense or not predicted).
        dense_ms, ms: predicted milliseconds before and after, where layers were timed.
        product: the layer before it that it is cut with, as one matrix; costs and shape are those of both.
    """

    name: str
    params: int
    macs: int
    shape: LayerShape | None = None
    form: Form | None = None
    rank: int | None = None
    reason: str | None = None
    error: float | None = None
    dense_ms: float | None = None
    ms: float | None = None
    product: Product | None = None

    @property
    def factored(self) -> bool:
        """Whether the layer is replaced."""
        return self.form is not None

    def cost(self, unit: Unit) -> int:
        """What it costs under the plan."""
        dense = self.macs if unit is Unit.MACS else self.params
        if self.shape is None or self.form is None or self.rank is None:
            return dense
        if self.product is not None:  # no norm is left between the two, nor the first one's bias
            return factored_cost(self.shape, self.form, self.rank, unit)
        return dense - dense_cost(self.shape, unit) + factored_cost(self.shape, self.form, self.rank, unit)


@dataclass(frozen=True)
class Plan:
    """Forms and ranks of a whole network; iterating gives the layers, `print` a table.

    Attributes:
        layers: every layer of the survey.
        params, macs: of the dense network, for one sample.
        input_shape: shape of one sample.
        budget: the policy that made it, in words; "by hand" otherwise.
        dense_ms, ms: predicted milliseconds of the network before and after, where layers were timed.
    """

    layers: tuple[LayerPlan, ...]
    params: int
    macs: int
    input_shape: tuple[int, ...]
    budget: str = "by hand"
    dense_ms: float | None = None
    ms: float | None = None

    def __iter__(self) -> Iterator[LayerPlan]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def factored(self) -> dict[str, LayerPlan]:
        """The layers that are replaced, by name."""
        return {layer.name: layer for layer in self if layer.factored}

    @property
    def products(self) -> Products:
        """The pairs of layers that are cut as one, by the second's name."""
        return {name: layer.product for name, layer in self.factored.items() if layer.product is not None}

    def dense_total(self, unit: Unit) -> int:
        """Cost of the dense network."""
        return self.macs if unit is Unit.MACS else self.params

    def total(self, unit: Unit) -> int:
        """Cost of the network under the plan."""
        dense = sum(layer.macs if unit is Unit.MACS else layer.params for layer in self)
        return self.dense_total(unit) - dense + sum(layer.cost(unit) for layer in self)

    def fraction(self, unit: Unit) -> float:
        """Cost under the plan as part of the dense cost."""
        return self.total(unit) / max(1, self.dense_total(unit))

    def with_ranks(self, ranks: Mapping[str, int]) -> Plan:
        """The same plan at other ranks of factored layers; predictions no longer hold and are dropped."""
        layers = tuple(
            replace(layer, rank=ranks[layer.name], error=None, ms=None) if layer.name in ranks else layer
            for layer in self
        )
        return replace(self, layers=layers, ms=None)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = []
        for layer in self:
            if layer.factored:
                what, rank = str(layer.form), str(layer.rank)
                what += "" if layer.product is None else f" with {layer.product.first}"
            else:
                what, rank = f"dense: {layer.reason}", ""
            error = "" if layer.error is None or not layer.factored else f"{100 * layer.error:.2f} %"
            params = _change(layer.params, layer.cost(Unit.PARAMS))
            macs = _change(layer.macs, layer.cost(Unit.MACS))
            rows.append((layer.name, rank, params, macs, _milliseconds(layer.dense_ms, layer.ms), error, what))
        total: tuple[str, ...] = (
            f"total ({self.budget})",
            "",
            _change(self.params, self.total(Unit.PARAMS)),
            _change(self.macs, self.total(Unit.MACS)),
            _milliseconds(self.dense_ms, self.ms),
            "",
            f"{100 * self.fraction(Unit.PARAMS):.1f} % of params, {100 * self.fraction(Unit.MACS):.1f} % of MACs",
        )
        head: tuple[str, ...] = ("layer", "rank", "params", "MACs", "ms", "error", "form")
        rows = [*rows, total]
        if self.dense_ms is None:  # a column of nothing
            head, rows = _without(head, 4), [_without(row, 4) for row in rows]
        return table(head, rows, right=range(1, len(head) - 1))

    def to_json(self) -> str:
        """JSON that `from_json` reads back; rank, form and reason may be edited by hand."""
        layers = [
            {
                "name": layer.name,
                "form": None if layer.form is None else layer.form.value,
                "rank": layer.rank,
                "reason": layer.reason,
                "error": layer.error,
                "params": layer.params,
                "macs": layer.macs,
                "dense_ms": layer.dense_ms,
                "ms": layer.ms,
                "shape": None if layer.shape is None else layer.shape.to_dict(),
                **({} if layer.product is None else {"product": layer.product._asdict()}),
            }
            for layer in self
        ]
        document = {
            "dprp_plan": FORMAT_VERSION,
            "budget": self.budget,
            "input_shape": list(self.input_shape),
            "params": self.params,
            "macs": self.macs,
            "dense_ms": self.dense_ms,
            "ms": self.ms,
            "layers": layers,
        }
        return json.dumps(document, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Reads a plan.

        Raises:
            PlanError: not JSON, not a plan, or a form or rank that its layer cannot take.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:  # also numbers of too many digits
            raise PlanError(f"the plan is not JSON ({quoted(error)}); write it anew with dprp convert") from error
        if not isinstance(document, dict) or "dprp_plan" not in document:
            raise PlanError("the JSON is not a plan (no dprp_plan key); write one with dprp convert")
        if document["dprp_plan"] != FORMAT_VERSION:
            raise PlanError(
                f"the plan has format {quoted(document['dprp_plan'])}, this dprp reads {FORMAT_VERSION}; upgrade dprp"
            )
        try:
            layers = tuple(_layer(values) for values in sequence(document["layers"], "layers", _MOST_LAYERS))
            _check_names(layers)
            return cls(
                layers,
                whole(document["params"], "params"),
                whole(document["macs"], "macs"),
                tuple(whole(n, "input_shape", 1, 2**31) for n in sequence(document["input_shape"], "input_shape", 8)),
                printable(document["budget"], "budget"),
                _optional(document, "dense_ms"),
                _optional(document, "ms"),
            )
        except PlanError:
            raise
        except KeyError as error:
            raise PlanError(f"the plan has no {quoted(error)}; write it anew with dprp convert") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"the plan does not read ({quoted(error)}); write it anew with dprp convert") from error


def _change(before: int, after: int) -> str:
    return f"{before:,}" if before == after else f"{before:,} -> {after:,}"


def _milliseconds(before: float | None, after: float | None) -> str:
    if before is None or before == after:
        return "" if before is None else f"{before:.3f}"
    return f"{before:.3f} -> {'?' if after is None else f'{after:.3f}'}"


def _without(row: tuple[str, ...], column: int) -> tuple[str, ...]:
    return row[:column] + row[column + 1 :]


def _optional(values: Mapping[str, Any], name: str) -> float | None:
    return None if values.get(name) is None else number(values[name], name, least=0)


def _check_names(layers: tuple[LayerPlan, ...]) -> None:
    seen: set[str] = set()
    for layer in layers:
        if layer.name in seen:
            raise PlanError(f"{quoted(layer.name)}: the plan lists this layer twice; keep one entry")
        seen.add(layer.name)


def _layer(values: Any) -> LayerPlan:
    name, form, rank = printable(values["name"], "a layer's name"), values.get("form"), values.get("rank")
    shown = quoted(name)
    shape = None if values.get("shape") is None else LayerShape.from_dict(values["shape"])
    if (form is None) != (rank is None):
        raise PlanError(
            f"{shown}: form {quoted(repr(form))} with rank {quoted(repr(rank))}; give both, or null for both to stay "
            "dense"
        )
    layer = LayerPlan(
        name,
        whole(values["params"], f"{shown}: params"),
        whole(values["macs"], f"{shown}: macs"),
        shape,
        reason=printable(values.get("reason") or "by hand", f"{shown}: reason"),
        error=_optional(values, "error"),
        dense_ms=_optional(values, "dense_ms"),
        ms=_optional(values, "ms"),
        product=_product(values.get("product"), shown, shape),
    )
    return layer if form is None else replace(layer, **checked_form(name, shape, form, rank), reason=None)


def _product(values: Any, shown: str, shape: LayerShape | None) -> Product | None:
    if (values is None) != (shape is None or shape.between is None):
        raise PlanError(
            f"{shown}: a product has the name of its first layer and, in its shape, the channels between both; write "
            "the plan anew"
        )
    if values is None:
        return None
    norm = values.get("norm")
    first = printable(values["first"], f"{shown}: first")
    return Product(first, None if norm is None else printable(norm, f"{shown}: norm"))


def checked_form(name: str, shape: LayerShape | None, form: str, rank: object) -> dict[str, Any]:
    """Form and rank, after a look whether the layer can take them.

    Raises:
        PlanError: it cannot.
    """
    if shape is None:
        raise PlanError(f"{quoted(name)}: this kind of layer cannot be factored; set form and rank to null")
    # Not all are offered, for some cost the same; yet each is right on every kernel that has its axes.
    if form not in [known.value for known in forms_of(shape)]:
        offered = ", ".join(known.value for known in forms_for(shape))
        raise PlanError(f"{quoted(name)}: form {quoted(repr(form))} is not one of {offered}; choose one of these")
    most = full_rank(shape, Form(form))
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= most:
        size = " x ".join(str(n) for n in shape.weight)
        raise PlanError(
            f"{quoted(name)}: rank {quoted(repr(rank))} is not in 1..{most} (weight {size}, form {form}); lower it"
        )
    return {"form": Form(form), "rank": rank}
