"""Convert: a plan becomes low-rank layers, all of it or nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..analysis.calibration import RIDGE, Calibration
from ..analysis.inputs import Samples
from ..analysis.opening import open_in_place, opened
from ..analysis.probe import evaluating
from ..analysis.running import copied, named, run, same_noise
from ..errors import ModelError
from ..lowrank.decomposition import Factors, decompose
from ..lowrank.forms import matricise
from ..lowrank.layers import LowRank, layout_of, low_rank
from ..lowrank.shapes import Plain
from ..planning.plan import LayerPlan, Plan
from .attached import attach_images, attachments, forget_plan
from .batchnorm import reestimate, running_statistics, shift_norms
from .replacing import check_fit, replace_layers
from .sequential import Reconstruction, reconstruct
from .views import views_to_fit

_KEPT_IMAGES = 2
"""Calibration images that a converted network keeps, for `fuse` to prove its work on."""


def convert(
    model: nn.Module,
    plan: Plan,
    *,
    calibration: Calibration | None = None,
    refit: bool = True,
    views: int | None = None,
    inplace: bool = False,
    on_layer: Callable[[str], None] | None = None,
) -> nn.Module:
    """Replaces layers by their factors.

    Args:
        model: the dense network; untouched unless `inplace`.
        plan: forms and ranks by layer name.
        calibration: images to fit the factors on. Layers are then made in the order in which they run, each making
            up for the errors before it. BatchNorm statistics are taken anew where that brings the outputs nearer to
            the dense network's. Without it, factors are the best fit to the weights.
        refit: let layers that stay dense make up for the errors before them, too, by other weights.
        views: of each image to fit on, >= 1: itself, and crops of it, where images are maps. None for as many as are
            known to hold better on others: 3 of fewer than 64 images that are larger than 64 x 64, and 1 otherwise.
        inplace: change `model` itself.
        on_layer: is told the name of each layer when it is made.

    Returns:
        The network with low-rank layers; at full rank it computes the same function. Attention that the plan looks
        into is open: its projections are layers. Of two layers that the plan cuts as one, the second has the factors,
        and in the place of the first, and of the norm between them, is nothing.

    Raises:
        PlanError: the plan does not fit the model. Nothing has been changed then.
        ModelError: the model cannot take the calibration images, or uses a layer that is out of reach of a
            replacement. Nothing has been changed then.
    """
    if views is not None and views < 1:
        raise ModelError(f"views {views} is below 1; give 1 for the images alone, or more for crops of them")
    names = [layer.name for layer in plan]
    given, model = model, opened(model, names, plan.products)
    check_fit(model, plan)
    made = Reconstruction({}, {}, {})
    if calibration is not None:
        images = calibration.images
        made = reconstruct(
            model,
            plan,
            images,
            ridge=RIDGE,
            metrics=calibration.metrics,
            refit=refit,
            views=views_to_fit(images, views),
            on_layer=on_layer,
        )
    target = given if inplace else copied(model)
    # Statistics are judged by the dense network's answers, which has gone by then where it is changed itself.
    dense = copied(model) if inplace and calibration is not None else model

    def factor(name: str, layer: Plain, wanted: LayerPlan) -> LowRank:
        if name in made.layers:
            return made.layers[name]
        assert wanted.shape is not None
        assert wanted.form is not None
        assert wanted.rank is not None
        with named(name, "its decomposition"):
            factors = decompose(matricise(layer.weight.double(), wanted.shape, wanted.form), wanted.rank)
        if on_layer is not None:
            on_layer(name)
        typed = Factors(*(part.to(layer.weight.dtype) for part in factors))
        return low_rank(wanted.shape, wanted.form, typed, layer.bias, layout_of(layer.weight))

    example = _example(model, plan, calibration)
    expected = None if example is None else _layers_that_run(model, tuple(plan.factored), example)
    with _all_or_nothing(target, made.refits):
        if inplace:
            open_in_place(target, names, plan.products)
        converted = replace_layers(target, plan, factor)
        if example is not None and expected is not None:
            _check_replacements_run(converted, expected, example)
        if calibration is not None:
            attach_images(converted, calibration.images[:_KEPT_IMAGES].cpu())
            _refit(converted, made)
            shift_norms(converted, made.shifts)
            reestimate(converted, dense, calibration.images)
    return converted


def _example(model: nn.Module, plan: Plan, calibration: Calibration | None) -> Samples | None:
    """An input to run the network on once; None for a model without parameters, whose type nobody knows."""
    if calibration is not None:
        return calibration.images[:1]
    first = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), None)
    if first is None:
        return None
    noise = torch.randn(1, *plan.input_shape, generator=torch.Generator().manual_seed(0))
    return noise.to(first)


def _layers_that_run(model: nn.Module, names: tuple[str, ...], example: Samples) -> set[str] | None:
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


def _check_replacements_run(model: nn.Module, expected: set[str], example: Samples) -> None:
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


@torch.no_grad()
def _refit(model: nn.Module, made: Reconstruction) -> None:
    """Gives layers that stay dense the weights that make up for those before them."""
    for name, layer in made.refits.items():
        for mine, fitted in zip(model.get_submodule(name).parameters(), layer.parameters(), strict=True):
            mine.copy_(fitted)


@contextmanager
def _all_or_nothing(model: nn.Module, refitted: Iterable[str]) -> Iterator[None]:
    """Puts every module, every norm's statistics and these layers' weights back where something goes wrong inside."""
    statistics = running_statistics(model)
    there = dict(model.named_modules())  # what is still to be opened has no weights to go back to
    weights = [(there[name], copy.deepcopy(there[name].state_dict())) for name in refitted if name in there]
    children = [(module, dict(module._modules)) for module in model.modules()]
    carried = attachments(model)
    try:
        yield
    except BaseException:
        for module, before in children:
            module._modules.clear()
            module._modules.update(before)
        for module, state in (*statistics, *weights):
            module.load_state_dict(state)
        forget_plan(model)
        vars(model).update(carried)
        raise
