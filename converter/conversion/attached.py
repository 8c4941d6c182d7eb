"""What a converted network carries with it: its plan, and a few of the images that it was fitted on."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from ..analysis.accuracy import device_of
from ..analysis.inputs import Inputs, Samples
from ..analysis.products import Products
from ..errors import PlanError
from ..lowrank.layers import LowRank
from ..planning.plan import Plan

_PLAN = "_dprp_plan"
_IMAGES = "_dprp_images"


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


def products_of(model: nn.Module) -> Products:
    """The pairs of layers that are one in a converted model; none in another."""
    return plan_of(model).products if isinstance(getattr(model, _PLAN, None), Plan) else {}


def images_of(model: nn.Module) -> Samples | None:
    """A few of the images that a model was calibrated on, on its device and of its type; None without calibration."""
    images = getattr(model, _IMAGES, None)
    if not isinstance(images, (Tensor, Inputs)):
        return None
    first = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), None)
    return images.to(first) if first is not None and images.is_floating_point() else images.to(device_of(model))


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


def attachments(model: nn.Module) -> dict[str, object]:
    """What a model carries now, by the names of its attributes."""
    return {mark: vars(model)[mark] for mark in (_PLAN, _IMAGES) if mark in vars(model)}


def attach_plan(model: nn.Module, plan: Plan) -> None:
    """Puts a plan on a model; on one that was converted before, what either of them factors is factored."""
    setattr(model, _PLAN, _on_top(getattr(model, _PLAN, None), plan))


def attach_images(model: nn.Module, images: Samples) -> None:
    """Keeps images for `images_of`: their own copy, for a view would keep all that it was cut from."""
    setattr(model, _IMAGES, images.clone())


def _on_top(before: Plan | None, plan: Plan) -> Plan:
    if before is None:
        return plan
    layers = tuple(plan.factored.get(layer.name, layer) for layer in before)
    return replace(before, layers=layers, budget=plan.budget, dense_ms=None, ms=None)
