"""How much the network's answers change when one layer loses some of its output.

The part of a layer's energy that is lost says little about what the network loses: the last layer of ResNet-20 may
lose a tenth of its output and no answer changes. So the divergence of the answers is taken at a few ranks of each
form, that layer alone being cut, and read off for every other rank by the energy that it loses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ..lowrank.forms import Form, forms_for, matrix_size
from .batch_axis import batch_axes
from .calibration import Calibration, Energies
from .curves import POINTS, curves, read, shape_of_free, tried_forms
from .losses import Losses, Sensitivity
from .opening import opened
from .running import copied
from .surveying import Layer, Survey

_MACS = 4e11
"""Multiply-adds to spend on trying, which decides how many images there are: about 20 s on two cores."""

_FEWEST_IMAGES, _MOST_IMAGES = 64, 512
_GROUP_BYTES = 2**30
"""Moments and changes of weights that are in memory together."""


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
        of_group = curves(probe, group, relative, calibration.metrics, images, axes)
        for layer in group:
            for form in forms_for(shape_of_free(layer)):
                key = (layer.name, form)
                lost = relative[key].double().numpy()
                nats, gone = (torch.from_numpy(read(curve, lost)) for curve in of_group.get(key, ([], [])))
                gone[0] = 1.0
                errors[key], costs[key] = gone.clamp_max(1.0), nats
            if on_layer is not None:
                on_layer(layer.name)
    return Losses(errors, costs)


def _images(layers: Survey, free: list[Layer]) -> int:
    """As many as the time allows: a pass forward and back is three, each rank of each form one run of its layer."""
    tried = sum(layer.macs * POINTS * len(layer.forms) for layer in free)
    return max(_FEWEST_IMAGES, min(_MOST_IMAGES, int(_MACS / max(1.0, 3 * layers.macs + tried))))


def _groups(layers: list[Layer]) -> Iterator[list[Layer]]:
    """Layers, in their order, whose moments and changes are in memory together."""
    group: list[Layer] = []
    taken = 0
    for layer in layers:
        shape = shape_of_free(layer)
        moments = sum(8 * shape.groups * matrix_size(shape, form)[1] ** 2 for form in tried_forms(layer))
        needed = moments + 4 * POINTS * len(layer.forms) * shape.params
        if group and taken + needed > _GROUP_BYTES:
            yield group
            group, taken = [], 0
        group.append(layer)
        taken += needed
    if group:
        yield group
