"""Convert: a plan becomes low-rank layers, all of it or nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from .batchnorm import reestimate
from .calibrate import RIDGE, Calibration
from .decompose import Factors, decompose
from .errors import PlanError
from .evaluate import device_of
from .forms import matricise
from .layers import LowRank, low_rank
from .plan import LayerPlan, Plan
from .sequential import reconstruct
from .shapes import shape_of

_PLAN = "_dprp_plan"
_IMAGES = "_dprp_images"

_KEPT_IMAGES = 2
"""Calibration images that a converted network keeps, for `fuse` to prove its work on."""


def convert(
    model: nn.Module,
    plan: Plan,
    *,
    calibration: Calibration | None = None,
    inplace: bool = False,
    on_layer: Callable[[str], None] | None = None,
) -> nn.Module:
    """Replaces layers by their factors.

    Args:
        model: the dense network; untouched unless `inplace`.
        plan: forms and ranks by layer name.
        calibration: images to fit the factors on. Layers are then made in the order in which they run, each making
            up for the errors before it, and BatchNorm statistics are taken anew where that brings the outputs
            nearer to the dense network's. Without it, factors are the best fit to the weights.
        inplace: change `model` itself.
        on_layer: is told the name of each layer when it is made.

    Returns:
        The network with low-rank layers; at full rank it computes the same function.

    Raises:
        PlanError: the plan does not fit the model. Nothing has been changed then.
        ModelError: the model cannot take the calibration images. Nothing has been changed then.
    """
    check_fit(model, plan)
    made: dict[str, LowRank] = {}
    if calibration is not None:
        made = reconstruct(model, plan, calibration.images, ridge=RIDGE, on_layer=on_layer)
    target = model if inplace else copy.deepcopy(model)

    def factor(name: str, layer: nn.Conv2d | nn.Linear, wanted: LayerPlan) -> LowRank:
        if name in made:
            return made[name]
        assert wanted.shape is not None
        assert wanted.form is not None
        assert wanted.rank is not None
        factors = decompose(matricise(layer.weight.double(), wanted.shape, wanted.form), wanted.rank)
        if on_layer is not None:
            on_layer(name)
        typed = Factors(*(part.to(layer.weight.dtype) for part in factors))
        return low_rank(wanted.shape, wanted.form, typed, layer.bias)

    converted = replace_layers(target, plan, factor)
    if calibration is not None:
        setattr(converted, _IMAGES, calibration.images[:_KEPT_IMAGES].cpu())
    if calibration is not None and converted is not model:
        reestimate(converted, model, calibration.images)
    return converted


def restructure(model: nn.Module, plan: Plan) -> nn.Module:
    """Makes room for a plan's factors in a dense network, in place, with nothing in them yet.

    Raises:
        PlanError: the plan does not fit the model. Nothing has been changed then.
    """

    def room(_name: str, layer: nn.Conv2d | nn.Linear, wanted: LayerPlan) -> LowRank:
        assert wanted.shape is not None
        assert wanted.form is not None
        assert wanted.rank is not None
        dtype, device = layer.weight.dtype, layer.weight.device
        return LowRank.empty(wanted.shape, wanted.form, wanted.rank, dtype=dtype, device=device)

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
        if not isinstance(layer, (nn.Conv2d, nn.Linear)) or wanted.shape is None:
            raise PlanError(f"{name}: a {type(layer).__name__} cannot be factored; set form and rank to null")
        if not shape_of(layer).same_layer(wanted.shape):
            raise PlanError(
                f"{name}: the plan is for a layer {wanted.shape.with_calls(())}, the model has {shape_of(layer)}; "
                "make the plan from this model"
            )
        if layer in seen:
            raise PlanError(f"{name}: the plan lists this shared layer twice; keep one entry")
        seen.add(layer)


def replace_layers(
    model: nn.Module,
    plan: Plan,
    make: Callable[[str, nn.Conv2d | nn.Linear, LayerPlan], LowRank],
) -> nn.Module:
    """Puts a new layer wherever the plan factors one: checks first, then makes all, then swaps all."""
    check_fit(model, plan)
    by_name = dict(model.named_modules(remove_duplicate=False))
    made: dict[nn.Module, LowRank] = {}
    for name, wanted in plan.factored.items():
        layer = by_name[name]
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
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
    setattr(model, _PLAN, plan)
    return model


def plan_of(model: nn.Module) -> Plan:
    """The plan of a converted model at the ranks that its layers have now.

    Raises:
        PlanError: the model was not converted.
    """
    plan = getattr(model, _PLAN, None)
    if not isinstance(plan, Plan):
        raise PlanError("the model has no plan; convert it first")
    ranks = {name: layer.rank for name, layer in low_rank_layers(model).items() if name in plan.factored}
    if all(plan.factored[name].rank == rank for name, rank in ranks.items()):
        return plan
    return plan.with_ranks(ranks)


def images_of(model: nn.Module) -> Tensor | None:
    """A few of the images that a model was calibrated on, on its device and of its type; None without calibration."""
    images = getattr(model, _IMAGES, None)
    if not isinstance(images, Tensor):
        return None
    first = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), images)
    return images.to(first) if images.is_floating_point() else images.to(device_of(model))


def forget_plan(model: nn.Module) -> None:
    """Makes a converted network an ordinary one again, for whoever pickles it; its layers stay as they are."""
    for mark in (_PLAN, _IMAGES):
        vars(model).pop(mark, None)


def relabel(model: nn.Module, budget: str) -> None:
    """Writes into a converted model's plan which policy brought it where it is."""
    setattr(model, _PLAN, replace(plan_of(model), budget=budget))


def low_rank_layers(model: nn.Module) -> dict[str, LowRank]:
    """The low-rank layers by name, each once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRank)}
