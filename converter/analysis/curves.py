"""What layers lose in truth, and what that costs the network, at a few ranks of each form.

Each rank's factors are fitted on some of the images and tried on the others, the rest of the network being dense.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..lowrank.costs import break_even_rank
from ..lowrank.decomposition import best_pair
from ..lowrank.forms import Form, matricise, matrix_size, rebuild
from ..lowrank.moments import LARGEST_MOMENT, PairMoments, pair_moments
from ..lowrank.reaching import first_moments
from ..lowrank.shapes import LayerShape
from ..lowrank.sweeping import Target, held_weights, swept_weights
from .answer_changes import answer_changes
from .calibration import RIDGE, Energies
from .inputs import Samples, joined
from .memory import bytes_kept, images_in_memory
from .norm_pairs import norm_scales, takes_up_means
from .output_metrics import OutputMetrics
from .probe import evaluating, layer_input
from .running import named, run
from .surveying import Layer

POINTS = 4
"""Ranks tried for each layer and form."""

_SAMPLES = 2
"""For each value of a window, so that factors are fitted to whole windows."""

_RIDGE_OF_FEW = 1.0
"""Where there are fewer: what holds the second factor to the closed form, and what such layers mostly choose."""

_FLOOR = 1e-9
_FEWEST_TO_SPLIT = 24

Curve = list[tuple[float, float]]
"""Foretold lost energy, and what stands for it, rising in both."""


def curves(
    model: nn.Module,
    layers: list[Layer],
    relative: Energies,
    metrics: OutputMetrics,
    images: Samples,
    axes: dict[str, int | None],
) -> dict[tuple[str, Form], tuple[Curve, Curve]]:
    """From foretold lost energy to nats, and to energy lost in truth, at a few ranks of each form.

    Fits are made on two thirds of the images and judged on the others: a layer of many inputs and few samples loses
    nothing of what it was fitted on.

    Args:
        model: the dense network, whose parameters need no gradient.
        layers: that can be cut; their moments are in memory together.
        relative: foretold lost energy at each rank, as a part of all.
        metrics: of the layers' outputs.
        images: (N, ...).
        axes: along which a layer's input counts the images.

    Returns:
        By layer and form; missing where nothing can be measured.
    """
    few = len(images) < _FEWEST_TO_SPLIT
    judged = images if few else images[::3]
    fitted = images if few else joined([images[1::3], images[2::3]])
    scales = norm_scales(model, [images[:2]])
    centred = takes_up_means(model, [layer.name for layer in layers], scales)
    moments = _moments(model, layers, fitted)
    tries: dict[str, list[tuple[Form, int]]] = {}
    changes: dict[str, list[Tensor]] = {}
    for layer in layers:
        shape, weight = shape_of_free(layer), layer.weight
        assert weight is not None
        seen = {form: moments.pop((layer.name, form)) for form in tried_forms(layer) if (layer.name, form) in moments}
        windows = {form: (m.centred() if layer.name in centred else m).ridged(RIDGE) for form, m in seen.items()}
        whole, fills = windows.get(Form.CHANNEL), _fills(shape, len(fitted))
        target = None if whole is None or len(windows) == 1 else Target.of_layer(weight, shape, whole)
        for form, window in windows.items():
            most = break_even_rank(shape, form)
            ranks = sorted({max(1, round(most * part / POINTS)) for part in range(1, POINTS + 1)})
            with named(layer.name, "measuring its sensitivity"):
                fits = _fits(weight, shape, form, ranks, window, target, fills, metrics.get(layer.name))
            tries.setdefault(layer.name, []).extend((form, rank) for rank in ranks)
            changes.setdefault(layer.name, []).extend(fit - weight for fit in fits)
    kept = sum(bytes_kept(shape_of_free(layer)) for layer in layers)
    moved = answer_changes(model, judged, changes, axes, scales, bytes_an_image=kept)
    points: dict[tuple[str, Form], tuple[Curve, Curve]] = {}
    for name, found in moved.items():
        for (form, rank), effect in zip(tries[name], found, strict=True):
            foretold = max(_FLOOR, float(relative[name, form][rank]))
            nats, lost = points.setdefault((name, form), ([], []))
            nats.append((foretold, max(_FLOOR, effect.nats)))
            lost.append((foretold, max(_FLOOR, effect.lost)))
    return {key: (_levelled(nats), _levelled(lost)) for key, (nats, lost) in points.items()}


def _fills(shape: LayerShape, images: int) -> bool:
    """Whether so many images have enough whole windows for a fit, which would follow each of fewer."""
    places = sum(math.prod(call.size_out) for call in shape.calls)
    return images * places >= _SAMPLES * matrix_size(shape, Form.CHANNEL)[1]


def _fits(
    weight: Tensor,
    shape: LayerShape,
    form: Form,
    ranks: list[int],
    moment: Tensor,
    target: Target | None,
    fills: bool,
    metric: Tensor | None,
) -> list[Tensor]:
    """The weight cut to each rank, both factors fitted to the whole window where its moment is known.

    Args:
        weight, shape, form, ranks, metric: of the layer.
        moment: of what the first factor sees.
        target: of whole windows.
        fills: whether these are many; the second factor is held to the closed form where they are few.
    """
    pair = left, right = best_pair(matricise(weight, shape, form), max(ranks), moment, metric)
    if form is Form.CHANNEL or target is None:
        cuts = [rebuild(left[..., :rank] @ right[..., :rank, :], shape, form) for rank in ranks]
    elif fills:
        cuts = swept_weights(right, ranks, weight, shape, form, target, metric)
    else:
        cuts = held_weights(pair, ranks, weight, shape, form, target, _RIDGE_OF_FEW)
    return [cut.reshape(weight.shape).to(weight.dtype) for cut in cuts]


def _levelled(points: Curve) -> Curve:
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
            for form, found in _of_forms(given, shape_of_free(layer), tried_forms(layer)):
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


def read(curve: Curve, lost: np.ndarray[Any, np.dtype[np.float64]]) -> Any:
    """Nats at each lost energy: straight between the points in logarithms, in proportion outside of them."""
    if not curve:
        return lost.copy()
    x, y = (np.log([point[axis] for point in curve]) for axis in (0, 1))
    at = np.log(np.maximum(lost, _FLOOR))
    nats = np.interp(at, x, y) + np.minimum(0.0, at - x[0]) + np.maximum(0.0, at - x[-1])
    return np.where(lost > _FLOOR, np.exp(nats), 0.0)


def tried_forms(layer: Layer) -> list[Form]:
    """Those of its forms whose moments are not too large."""
    return [form for form in layer.forms if matrix_size(shape_of_free(layer), form)[1] <= LARGEST_MOMENT]


def shape_of_free(layer: Layer) -> LayerShape:
    """Of a layer that can be cut, and so has one."""
    assert layer.shape is not None
    return layer.shape
