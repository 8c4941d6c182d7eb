"""How much the network's answers change when one layer loses some of its output.

The part of a layer's energy that is lost says little about what the network loses: the last layer of ResNet-20 may
lose a tenth of its output and no answer changes. So each layer's curve from lost energy to the Kullback-Leibler
divergence of the outputs is measured at a few ranks, that layer alone being cut, and read off for every other rank
and form.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..lowrank.costs import break_even_rank
from ..lowrank.decomposition import best_fits, regularised
from ..lowrank.forms import Form, forms_for, matricise, matrix_size, rebuild
from ..lowrank.moments import LARGEST_MOMENT, pair_moments
from ..lowrank.shapes import LayerShape
from .calibration import RIDGE, Calibration, Energies
from .probe import evaluating, layer_input
from .running import copied, log_probabilities, named, run
from .surveying import Layer, Survey

_POINTS = 4
"""Ranks tried for each layer."""

_MACS = 4e11
"""Multiply-adds to spend on trying, which decides how many images there are: about 20 s on two cores."""

_MOST_IMAGES = 128
_FLOOR = 1e-9


class Sensitivity(str, Enum):
    """What a plan takes as the loss of a layer at a rank."""

    ENERGY = "energy"
    KL = "kl"
    MIXED = "mixed"

    def __str__(self) -> str:
        return self.value


@torch.no_grad()
def sensitivities(
    model: nn.Module,
    layers: Survey,
    calibration: Calibration,
    kind: Sensitivity,
    *,
    on_layer: Callable[[str], None] | None = None,
) -> Energies:
    """What each layer's loss at each rank costs the network.

    Args:
        model: the dense network; gives (N, classes), or several outputs of which the first is that.
        layers: its survey.
        calibration: of the same model.
        kind: energy (the lost part of the layer's output), kl (divergence of the outputs in nats), or mixed (the
            geometric mean of both, which plans better than either where a budget is tight).
        on_layer: is told the name of each layer when it is done.

    Returns:
        A distortion by (layer, form) at each rank from 0 to full, for `plan_ranks`.
    """
    relative = {key: energy / energy[0].clamp_min(1e-300) for key, energy in calibration.energies.items()}
    if kind is Sensitivity.ENERGY:
        return relative
    free = [layer for layer in layers if layer.reason is None]
    affordable = int(_MACS / max(1.0, (_POINTS + 1) * len(free) * layers.macs))
    images = calibration.images[: max(4, min(_MOST_IMAGES, affordable))]
    found: dict[tuple[str, Form], Tensor] = {}
    probe = copied(model)
    with evaluating(probe):
        wanted = log_probabilities(run(probe, images))
        for layer in free:
            with named(layer.name, "measuring its sensitivity"):
                curve = _curve(probe, layer, relative, images, wanted)
            for form in forms_for(_shape(layer)):
                lost = relative[layer.name, form].double()
                nats = torch.from_numpy(_read(curve, lost.numpy()))
                found[layer.name, form] = nats if kind is Sensitivity.KL else (nats * lost).sqrt()
            if on_layer is not None:
                on_layer(layer.name)
    return found


def _curve(
    model: nn.Module, layer: Layer, relative: Energies, images: Tensor, wanted: Tensor
) -> list[tuple[float, float]]:
    """(lost energy, nats) at a few ranks of the layer's roomiest form, rising in both."""
    shape = _shape(layer)
    # The form with most ranks below break-even has the finest steps, and the smallest moment for its size.
    forms = [form for form in layer.forms if matrix_size(shape, form)[1] <= LARGEST_MOMENT]
    if not forms:
        return []
    form = max(forms, key=lambda option: break_even_rank(shape, option))
    most = break_even_rank(shape, form)
    module = model.get_submodule(layer.name)
    weight = module.weight
    assert isinstance(weight, Tensor)
    moment = _moment(model, module, images, layer, form)
    matrix = matricise(weight, shape, form)
    points = []
    ranks = sorted({max(1, round(most * part / (_POINTS + 0.5))) for part in range(1, _POINTS + 1)})
    kept = weight.clone()
    for rank, fit in zip(ranks, best_fits(matrix, ranks, moment), strict=True):
        weight.copy_(rebuild(fit, shape, form).reshape(weight.shape))
        answers = log_probabilities(run(model, images))
        weight.copy_(kept)
        rows = max(1, answers.numel() // answers.shape[-1])
        nats = float(F.kl_div(answers, wanted, log_target=True, reduction="sum")) / rows
        points.append((max(_FLOOR, float(relative[layer.name, form][rank])), max(_FLOOR, nats)))
    points = sorted(set(points))
    levelled = points[:1]
    for (_, before), (lost, nats) in pairwise(points):
        levelled.append((lost, max(nats, before, levelled[-1][1])))
    return levelled


def _moment(model: nn.Module, module: nn.Module, images: Tensor, layer: Layer, form: Form) -> Tensor:
    seen: list[Tensor] = []

    def look(_module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        given = layer_input(inputs, keywords)
        if not seen and given is not None:  # the first call of a shared module
            seen.append(given)

    handle = module.register_forward_pre_hook(look, with_kwargs=True)
    try:
        run(model, images)
    finally:
        handle.remove()
    return regularised(pair_moments(seen[0], seen[0], _shape(layer), form).second, RIDGE)


def _read(curve: list[tuple[float, float]], lost: np.ndarray[Any, np.dtype[np.float64]]) -> Any:
    """Nats at each lost energy: straight between the points in logarithms, in proportion outside of them."""
    if not curve:
        return lost.copy()
    x, y = (np.log([point[axis] for point in curve]) for axis in (0, 1))
    at = np.log(np.maximum(lost, _FLOOR))
    nats = np.interp(at, x, y) + np.minimum(0.0, at - x[0]) + np.maximum(0.0, at - x[-1])
    return np.where(lost > _FLOOR, np.exp(nats), 0.0)


def _shape(layer: Layer) -> LayerShape:
    assert layer.shape is not None
    return layer.shape
