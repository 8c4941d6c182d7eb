"""Convert: a plan becomes low-rank layers, all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from .accuracy import device_of
from .batchnorm import reestimate
from .calibration import RIDGE, Calibration
from .decomposition import Factors, decompose
from .errors import ModelError, PlanError
from .forms import matricise
from .layers import LowRank, low_rank
from .plan import LayerPlan, Plan
from .probe import evaluating
from .running import copied, named, run, same_noise
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
        ModelError: the model cannot take the calibration images, or uses a layer that is out of reach of a
            replacement. Nothing has been changed then.
    """
    check_fit(model, plan)
    made: dict[str, LowRank] = {}
    if calibration is not None:
        made = reconstruct(model, plan, calibration.images, ridge=RIDGE, on_layer=on_layer)
    target = model if inplace else copied(model)
    # Statistics are judged by the dense network's answers, which has gone by then where it is changed itself.
    dense = copied(model) if inplace and calibration is not None else model

    def factor(name: str, layer: nn.Conv2d | nn.Linear, wanted: LayerPlan) -> LowRank:
        if name in made:
            return made[name]
        assert wanted.shape is not None
        assert wanted.form is not None
        assert wanted.rank is not None
        with named(name, "its decomposition"):
            factors = decompose(matricise(layer.weight.double(), wanted.shape, wanted.form), wanted.rank)
        if on_layer is not None:
            on_layer(name)
        typed = Factors(*(part.to(layer.weight.dtype) for part in factors))
        return low_rank(wanted.shape, wanted.form, typed, layer.bias)

    example = _example(model, plan, calibration)
    expected = None if example is None else _layers_that_run(model, tuple(plan.factored), example)
    with _all_or_nothing(target):
        converted = replace_layers(target, plan, factor)
        if example is not None and expected is not None:
            _check_replacements_run(converted, expected, example)
        if calibration is not None:
            setattr(converted, _IMAGES, calibration.images[:_KEPT_IMAGES].cpu())
            reestimate(converted, dense, calibration.images)
    return converted


def _example(model: nn.Module, plan: Plan, calibration: Calibration | None) -> Tensor | None:
    """An input to run the network on once; None for a model without parameters, whose type nobody knows."""
    if calibration is not None:
        return calibration.images[:1]
    first = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), None)
    if first is None:
        return None
    noise = torch.randn(1, *plan.input_shape, generator=torch.Generator().manual_seed(0))
    return noise.to(first)


def _layers_that_run(model: nn.Module, names: tuple[str, ...], example: Tensor) -> set[str] | None:
    """Which of these layers run on an input; None where the model does not take it."""
    ran: set[str] = set()
    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: ran.add(name)) for name in names
    ]
    try:
        with evaluating(model), torch.no_grad(), same_noise():
            run(model, example)
    except ModelError:
        return None
    finally:
        for handle in handles:
            handle.remove()
    return ran


def _check_replacements_run(model: nn.Module, expected: set[str], example: Tensor) -> None:
    """Raises ModelError where a layer that ran in the dense network does not run in the converted one."""
    ran = _layers_that_run(model, tuple(expected), example)
    if ran is None:
        with evaluating(model), torch.no_grad():
            run(model, example)  # says what is wrong
    missing = sorted(expected - (ran or set()))
    if missing:
        raise ModelError(
            f"{', '.join(missing)}: replaced, but the model goes on using the dense layer, which it keeps outside of "
            "its modules too (in a list, say); use nn.ModuleList, or keep it dense"
        )


@contextmanager
def _all_or_nothing(model: nn.Module) -> Iterator[None]:
    """Puts every module back where something goes wrong inside; `reestimate` does so for statistics."""
    children = [(module, dict(module._modules)) for module in model.modules()]
    marks = {mark: vars(model)[mark] for mark in (_PLAN, _IMAGES) if mark in vars(model)}
    try:
        yield
    except BaseException:
        for module, before in children:
            module._modules.clear()
            module._modules.update(before)
        forget_plan(model)
        vars(model).update(marks)
        raise


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
    counted = _recounted(plan, by_name)
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
    setattr(model, _PLAN, _on_top(getattr(model, _PLAN, None), counted))
    return model


def _recounted(plan: Plan, by_name: Mapping[str, nn.Module]) -> Plan:
    """The plan with the costs that this model has: one that was read from a file may say anything."""

    def cost(layer: LayerPlan) -> LayerPlan:
        module = by_name.get(layer.name)
        params = layer.params if module is None else _parameters(module.parameters(recurse=False))
        macs = layer.shape.macs if layer.factored and layer.shape is not None else layer.macs
        return replace(layer, params=params, macs=macs)

    layers = tuple(cost(layer) for layer in plan)
    total = _parameters(by_name[""].parameters())
    return replace(plan, layers=layers, params=total, macs=sum(layer.macs for layer in layers))


def _parameters(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters if not isinstance(p, nn.parameter.UninitializedParameter))


def _on_top(before: Plan | None, plan: Plan) -> Plan:
    """The plan of a network that was converted before: what either of them factors is factored."""
    if before is None:
        return plan
    layers = tuple(plan.factored.get(layer.name, layer) for layer in before)
    return replace(before, layers=layers, budget=plan.budget, dense_ms=None, ms=None)


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
