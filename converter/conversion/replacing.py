"""New layers in the places of old ones: checked first, made next, and put in last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from torch import nn

from ..analysis.opening import open_in_place
from ..analysis.products import place_of
from ..errors import PlanError
from ..lowrank.costs import Unit, dense_cost
from ..lowrank.layers import LowRank
from ..lowrank.shapes import Plain, shape_of
from ..planning.plan import LayerPlan, Plan
from .attached import attach_plan


def restructure(model: nn.Module, plan: Plan) -> nn.Module:
    """Makes room for a plan's factors in a dense network, in place, with nothing in them yet.

    Raises:
        PlanError: the plan does not fit the model. Nothing has been changed then.
    """

    def room(_name: str, layer: Plain, wanted: LayerPlan) -> LowRank:
        assert wanted.shape is not None
        assert wanted.form is not None
        assert wanted.rank is not None
        dtype, device = layer.weight.dtype, layer.weight.device
        return LowRank.empty(wanted.shape, wanted.form, wanted.rank, dtype=dtype, device=device)

    open_in_place(model, [layer.name for layer in plan], plan.products)
    return replace_layers(model, plan, room)


def check_fit(model: nn.Module, plan: Plan) -> None:
    """Raises PlanError when a plan is not for this model."""
    by_name = dict(model.named_modules(remove_duplicate=False))
    seen: set[nn.Module] = set()
    for name, wanted in plan.factored.items():
        layer = by_name.get(name)
        if layer is None:
            raise PlanError(f"{name}: the model has no such layer; make the plan from this model")
        if not name:
            raise PlanError("the model is itself a single layer; wrap it in nn.Sequential")
        if not isinstance(layer, Plain) or wanted.shape is None:
            raise PlanError(f"{name}: a {type(layer).__name__} cannot be factored; set form and rank to null")
        if not shape_of(layer).same_layer(wanted.shape):
            raise PlanError(
                f"{name}: the plan is for a layer {wanted.shape.with_calls(())}, the model has {shape_of(layer)}; "
                "make the plan from this model"
            )
        if wanted.product is not None:
            between = place_of(model, wanted.product).between
            if wanted.shape.between != between:
                raise PlanError(
                    f"{name}: the plan has {wanted.shape.between} channels between {wanted.product.first} and it, "
                    f"the model has {between}; make the plan from this model"
                )
        if layer in seen:
            raise PlanError(f"{name}: the plan lists this shared layer twice; keep one entry")
        seen.add(layer)


def replace_layers(
    model: nn.Module,
    plan: Plan,
    make: Callable[[str, Plain, LayerPlan], LowRank],
) -> nn.Module:
    """Puts a new layer wherever the plan factors one: checks first, then makes all, then swaps all."""
    check_fit(model, plan)
    by_name = dict(model.named_modules(remove_duplicate=False))
    counted = _recounted(plan, by_name)
    made: dict[nn.Module, LowRank] = {}
    for name, wanted in plan.factored.items():
        layer = by_name[name]
        assert isinstance(layer, Plain)
        replacement = make(name, layer, wanted)
        replacement.train(layer.training)
        for parameter in replacement.parameters():
            parameter.requires_grad_(layer.weight.requires_grad)
        made[layer] = replacement
    # A shared module has several names: each place gets the one replacement.
    for name, layer in by_name.items():
        if layer in made:
            parent, _, child = name.rpartition(".")
            setattr(by_name[parent], child, made[layer])
    attach_plan(model, counted)
    return model


def _recounted(plan: Plan, by_name: Mapping[str, nn.Module]) -> Plan:
    """The plan with the costs that this model has: one that was read from a file may say anything."""
    total = _parameters(by_name[""].parameters())
    layers = []
    for layer in plan:
        module = by_name.get(layer.name)
        params = layer.params if module is None else _parameters(module.parameters(recurse=False))
        macs = layer.macs
        if layer.factored and layer.shape is not None:
            macs = dense_cost(layer.shape, Unit.MACS)
        if layer.factored and layer.product is not None:  # the model has it as one weight by now
            before = place_of(by_name[""], layer.product).params
            total += before - params
            params = before
        layers.append(replace(layer, params=params, macs=macs))
    return replace(plan, layers=tuple(layers), params=total, macs=sum(layer.macs for layer in layers))


def _parameters(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters if not isinstance(p, nn.parameter.UninitializedParameter))
