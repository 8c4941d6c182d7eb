"""How much the network's answers change when one layer loses some of its output.

The part of a layer's energy that is lost says little about what the network loses: the last layer of ResNet-20 may
lose a tenth of its output and no answer changes. So the divergence of the answers is taken at a few ranks of each
form, that layer alone being cut, and read off for every other rank by the energy that it loses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..lowrank.costs import break_even_rank
from ..lowrank.decomposition import best_pair
from ..lowrank.forms import Form, forms_for, matricise, matrix_size, rebuild
from ..lowrank.moments import LARGEST_MOMENT, PairMoments, pair_moments
from ..lowrank.reaching import first_moments
from ..lowrank.shapes import LayerShape
from ..lowrank.sweeping import Target, swept_weights
from .answer_changes import answer_changes
from .batch_axis import batch_axes
from .calibration import RIDGE, Calibration, Energies, takes_up_means
from .inputs import Samples, joined
from .memory import bytes_kept, images_in_memory
from .opening import opened
from .output_metrics import OutputMetrics
from .probe import evaluating, layer_input
from .running import copied, named, run
from .surveying import Layer, Survey

_POINTS = 4
"""Ranks tried for each layer and form."""

_MACS = 4e11
"""Multiply-adds to spend on trying, which decides how many images there are: about 20 s on two cores."""

_FEWEST_IMAGES, _MOST_IMAGES = 64, 512
_GROUP_BYTES = 2**30
"""Moments and changes of weights that are in memory together."""

_FLOOR = 1e-9
_FEWEST_TO_SPLIT = 24

_SPREAD = 0.5
"""Of the logarithms by which a layer's losses are scaled for a trial."""

_Curve = list[tuple[float, float]]


class Sensitivity(str, Enum):
    """What a plan takes as the loss of a layer at a rank."""

    BEST = "best"
    ENERGY = "energy"
    KL = "kl"
    MIXED = "mixed"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Losses:
    """What each layer loses at each rank, and what that costs the network, on images that nothing was fitted on.

    Attributes:
        errors: lost part of what varies in the layer's output, by (layer, form) at each rank from 0 to full.
        nats: divergence of the network's answers, that layer alone being cut; the same.
    """

    errors: Energies
    nats: Energies

    def distortions(self, kind: Sensitivity) -> Energies:
        """What a budget's plan shall minimise the sum of; `best` has several, see `candidates`."""
        if kind is Sensitivity.BEST:
            raise ModelError("the best of several sensitivities needs trials; take these losses' candidates")
        return self.blend({Sensitivity.ENERGY: 0.0, Sensitivity.MIXED: 0.5, Sensitivity.KL: 1.0}[kind])

    def blend(self, weight: float) -> Energies:
        """The geometric mean of nats and errors: nats alone at weight 1, errors alone at 0."""
        return {key: nats**weight * self.errors[key] ** (1 - weight) for key, nats in self.nats.items()}

    def candidates(self, count: int, seed: int = 0) -> list[Energies]:
        """Distortions whose plans are worth a trial.

        Args:
            count: how many, one at least; of the first ones BLENDS has the weights.
            seed: of the others: blends in which each layer's losses are multiplied by exp(0.5 n), n standard normal.

        Source of the others: SPDY (Frantar and Alistarh 2022).
        """
        found = [self.blend(weight) for weight in BLENDS[:count]]
        generator = torch.Generator().manual_seed(seed)
        names = list(dict.fromkeys(name for name, _ in self.nats))
        while len(found) < count:
            scales = dict(zip(names, torch.exp(_SPREAD * torch.randn(len(names), generator=generator)), strict=True))
            blend = found[len(found) % len(BLENDS)]
            found.append({key: float(scales[key[0]]) * loss for key, loss in blend.items()})
        return found


BLENDS = (0.75, 1.0, 0.5)
"""Weights of nats that are worth a trial, the one to take without a trial first."""


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
        model, layers, calibration, on_layer: as for `foretell`.
        kind: energy (the lost part of the layer's output), kl (divergence of the outputs in nats), or mixed (the
            geometric mean of both).

    Returns:
        A distortion by (layer, form) at each rank from 0 to full, for `plan_ranks`.
    """
    return foretell(model, layers, calibration, on_layer=on_layer).distortions(kind)


@torch.no_grad()
def foretell(
    model: nn.Module,
    layers: Survey,
    calibration: Calibration,
    *,
    on_layer: Callable[[str], None] | None = None,
) -> Losses:
    """Measures what cutting each layer costs: at a few ranks of each form in truth, at the others by the energy.

    Args:
        model: the dense network; gives (N, classes), or several outputs of which the first is that.
        layers: its survey.
        calibration: of the same model.
        on_layer: is told the name of each layer when it is done.
    """
    relative = {key: energy / energy[0].clamp_min(1e-300) for key, energy in calibration.energies.items()}
    free = [layer for layer in layers if layer.reason is None]
    images = calibration.images[: _images(layers, free)]
    probe = copied(opened(model, [layer.name for layer in layers], layers.products))
    for parameter in probe.parameters():
        parameter.requires_grad_(False)
    axes = batch_axes(probe, [layer.name for layer in free], images)
    errors: dict[tuple[str, Form], Tensor] = {}
    costs: dict[tuple[str, Form], Tensor] = {}
    for group in _groups(free):
        curves = _curves(probe, group, relative, calibration.metrics, images, axes)
        for layer in group:
            for form in forms_for(_shape(layer)):
                key = (layer.name, form)
                lost = relative[key].double().numpy()
                nats, gone = (torch.from_numpy(_read(curve, lost)) for curve in curves.get(key, ([], [])))
                gone[0] = 1.0
                errors[key], costs[key] = gone.clamp_max(1.0), nats
            if on_layer is not None:
                on_layer(layer.name)
    return Losses(errors, costs)


def _images(layers: Survey, free: list[Layer]) -> int:
    """As many as the time allows: a pass forward and back is three, each rank of each form one run of its layer."""
    tried = sum(layer.macs * _POINTS * len(layer.forms) for layer in free)
    return max(_FEWEST_IMAGES, min(_MOST_IMAGES, int(_MACS / max(1.0, 3 * layers.macs + tried))))


def _groups(layers: list[Layer]) -> Iterator[list[Layer]]:
    """Layers, in their order, whose moments and changes are in memory together."""
    group: list[Layer] = []
    taken = 0
    for layer in layers:
        shape = _shape(layer)
        moments = sum(8 * shape.groups * matrix_size(shape, form)[1] ** 2 for form in _tried(layer))
        needed = moments + 4 * _POINTS * len(layer.forms) * shape.params
        if group and taken + needed > _GROUP_BYTES:
            yield group
            group, taken = [], 0
        group.append(layer)
        taken += needed
    if group:
        yield group


def _tried(layer: Layer) -> list[Form]:
    return [form for form in layer.forms if matrix_size(_shape(layer), form)[1] <= LARGEST_MOMENT]


def _curves(
    model: nn.Module,
    layers: list[Layer],
    relative: Energies,
    metrics: OutputMetrics,
    images: Samples,
    axes: dict[str, int | None],
) -> dict[tuple[str, Form], tuple[_Curve, _Curve]]:
    """From foretold lost energy to nats, and to energy lost in truth, at a few ranks of each form.

    Fits are made on two thirds of the images and judged on the others: a layer of many inputs and few samples loses
    nothing of what it was fitted on.
    """
    few = len(images) < _FEWEST_TO_SPLIT
    judged = images if few else images[::3]
    fitted = images if few else joined([images[1::3], images[2::3]])
    centred = takes_up_means(model, [layer.name for layer in layers], images)
    moments = _moments(model, layers, fitted)
    tries: dict[str, list[tuple[Form, int]]] = {}
    changes: dict[str, list[Tensor]] = {}
    for layer in layers:
        shape, weight = _shape(layer), layer.weight
        assert weight is not None
        seen = {form: moments.pop((layer.name, form)) for form in _tried(layer) if (layer.name, form) in moments}
        windows = {form: (m.centred() if layer.name in centred else m).ridged(RIDGE) for form, m in seen.items()}
        whole = windows.get(Form.CHANNEL)
        target = None if whole is None or len(windows) == 1 else Target.of_layer(weight, shape, whole)
        for form, window in windows.items():
            most = break_even_rank(shape, form)
            ranks = sorted({max(1, round(most * part / _POINTS)) for part in range(1, _POINTS + 1)})
            with named(layer.name, "measuring its sensitivity"):
                fits = _fits(weight, shape, form, ranks, window, target, metrics.get(layer.name))
            tries.setdefault(layer.name, []).extend((form, rank) for rank in ranks)
            changes.setdefault(layer.name, []).extend(fit - weight for fit in fits)
    kept = sum(bytes_kept(_shape(layer)) for layer in layers)
    moved = answer_changes(model, judged, changes, axes, bytes_an_image=kept)
    points: dict[tuple[str, Form], tuple[_Curve, _Curve]] = {}
    for name, found in moved.items():
        for (form, rank), effect in zip(tries[name], found, strict=True):
            foretold = max(_FLOOR, float(relative[name, form][rank]))
            nats, lost = points.setdefault((name, form), ([], []))
            nats.append((foretold, max(_FLOOR, effect.nats)))
            lost.append((foretold, max(_FLOOR, effect.lost)))
    return {key: (_levelled(nats), _levelled(lost)) for key, (nats, lost) in points.items()}


def _fits(
    weight: Tensor,
    shape: LayerShape,
    form: Form,
    ranks: list[int],
    moment: Tensor,
    target: Target | None,
    metric: Tensor | None,
) -> list[Tensor]:
    """The weight cut to each rank, both factors fitted to the whole window where its moment is known.

    Args:
        weight, shape, form, ranks, metric: of the layer.
        moment: of what the first factor sees.
        target: of whole windows.
    """
    left, right = best_pair(matricise(weight, shape, form), max(ranks), moment, metric)
    if form is Form.CHANNEL or target is None:
        cuts = [rebuild(left[..., :rank] @ right[..., :rank, :], shape, form) for rank in ranks]
    else:
        cuts = swept_weights(right, ranks, weight, shape, form, target, metric)
    return [cut.reshape(weight.shape).to(weight.dtype) for cut in cuts]


def _levelled(points: _Curve) -> _Curve:
    """Sorted, and rising in both."""
    points = sorted(set(points))
    levelled = points[:1]
    for lost, nats in points[1:]:
        levelled.append((lost, max(nats, levelled[-1][1])))
    return levelled


def _moments(model: nn.Module, layers: list[Layer], images: Samples) -> dict[tuple[str, Form], PairMoments]:
    """Moments of what the first factors see, over all images, some at a time."""
    means: dict[tuple[str, Form], PairMoments] = {}

    def look(layer: Layer) -> Callable[..., None]:
        seen = 0

        def hook(_module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            nonlocal seen
            given = layer_input(inputs, keywords)
            if given is None:
                return
            seen += 1
            for form, found in _of_forms(given, _shape(layer), _tried(layer)):
                key = (layer.name, form)
                means[key] = found if seen == 1 else means[key].pooled(found, 1 / seen)

        return hook

    handles = [
        model.get_submodule(layer.name).register_forward_pre_hook(look(layer), with_kwargs=True) for layer in layers
    ]
    batch = max(1, images_in_memory([layer.shape for layer in layers], len(images)))
    try:
        with evaluating(model):
            for part in images.split(batch):
                run(model, part)
    finally:
        for handle in handles:
            handle.remove()
    return means


def _of_forms(x: Tensor, shape: LayerShape, forms: list[Form]) -> Iterator[tuple[Form, PairMoments]]:
    """Moments of what each form's first factor sees; parts of those of whole windows, where they are known."""
    whole = pair_moments(x, x, shape, Form.CHANNEL) if Form.CHANNEL in forms else None
    for form in forms:
        found = None if whole is None else first_moments(whole, shape, form)
        yield form, pair_moments(x, x, shape, form) if found is None else found


def _read(curve: _Curve, lost: np.ndarray[Any, np.dtype[np.float64]]) -> Any:
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
