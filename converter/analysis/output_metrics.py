"""What the answers feel of an error in a layer's output: the metric in which it counts.

An error d at a place of the output moves the answers by g . d, so that its square counts d^T G d, with G = E[g g^T]
over images and places as if errors at different places had nothing to do with each other. Channels that a later
layer hardly reads, or that a ReLU cuts off, then cost little, and mixtures of channels are told apart.

G comes from few images, of which each counts as one sample, and is shrunken towards the identity by as much as these
disagree: a classifier of 1,000 classes and 200 images keeps next to nothing of it.

Source: the output side of K-FAC, Martens and Grosse (2015); shrinkage of Ledoit and Wolf (2004).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..lowrank.shapes import LayerShape
from .answer_slopes import Call, answer_slopes, images_with_slopes, usable
from .inputs import Samples
from .memory import bytes_kept
from .probe import evaluating
from .running import copied

OutputMetrics = Mapping[str, Tensor]
"""By layer (outputs, outputs), or (groups, outputs / groups, outputs / groups): float64, of a mean diagonal of 1."""

_FLOOR = 1e-3
"""Of a metric's mean diagonal, added to it: what no image's answers feel still counts a little."""

_LARGEST = 2048
"""Outputs of the largest metric made, 32 MB: all of a network's are kept, and few images tell no more apart."""


@dataclass
class _Slopes:
    """Sums over images: of each one's G_i = sum over places of g g^T, and of |G_i|^2."""

    total: Tensor
    squares: float = 0.0

    def add(self, slopes: Tensor) -> None:
        """Slopes of one call: (images, places, groups, channels)."""
        slopes = slopes.transpose(1, 2).float()
        places, channels = slopes.shape[-2:]
        if places < channels:  # |g g^T| = |g^T g|, and the smaller one is cheaper
            self.squares += float((slopes @ slopes.mT).double().square().sum())
            flat = slopes.transpose(0, 1).flatten(1, 2)
            self.total += (flat.mT @ flat).double()
        else:
            each = (slopes.mT @ slopes).double()
            self.squares += float(each.square().sum())
            self.total += each.sum(0)

    def metric(self, images: int) -> Tensor | None:
        """Shrunken, with a mean diagonal of 1; None where there are no slopes."""
        mean = self.total / images
        size = mean.diagonal(dim1=-2, dim2=-1).mean()
        if images < 2 or not bool(size > 0) or not bool(mean.isfinite().all()):
            return None
        eye = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
        away = float((mean - size * eye).square().sum())
        doubt = (self.squares / images - float(mean.square().sum())) / (images - 1)
        share = 1.0 if away <= 0 else min(1.0, max(0.0, doubt / away))
        return (1 - share) * mean / size + (share + _FLOOR) * eye


@torch.no_grad()
def output_metrics(
    model: nn.Module, shapes: Mapping[str, LayerShape], images: Samples, axes: Mapping[str, int | None]
) -> dict[str, Tensor]:
    """The metric of each layer's output.

    Args:
        model: gives (N, classes), or several outputs of which the first is that; untouched.
        shapes: the layers.
        images: (N, ...).
        axes: along which a layer's input counts the images, from `batch_axes`.

    Returns:
        Metrics, see `OutputMetrics`. Without one: a layer whose output has no gradient or does not carry the images,
        that has one output a group or too many of them, and each layer of a network that gives no scores.
    """
    probe = copied(model)
    for parameter in probe.parameters():
        parameter.requires_grad_(False)
    sums = {
        name: _Slopes(torch.zeros((shape.groups, size, size), dtype=torch.float64, device=images.device))
        for name, shape in shapes.items()
        if axes.get(name) is not None and 1 < (size := shape.outputs // shape.groups) <= _LARGEST
    }
    modules = {name: probe.get_submodule(name) for name in sums}
    at_once = images_with_slopes(sum(bytes_kept(shape) for shape in shapes.values()))
    generator = torch.Generator(images.device).manual_seed(0)
    with evaluating(probe), torch.autocast(images.device.type, enabled=False):
        for part in images.split(at_once):
            try:
                calls, _ = answer_slopes(probe, modules, part, generator)
            except ModelError:
                return {}
            for name in [*sums]:
                axis = axes[name]
                assert axis is not None
                if not calls[name] or not all(usable(call, axis, len(part)) for call in calls[name]):
                    del sums[name], modules[name]
                    continue
                for call in calls[name]:
                    sums[name].add(_places(call, shapes[name], axis, len(part)))
    metrics = {name: found.metric(len(images)) for name, found in sums.items()}
    return {
        name: metric if shapes[name].groups > 1 else metric[0]
        for name, metric in metrics.items()
        if metric is not None
    }


def _places(call: Call, shape: LayerShape, axis: int, images: int) -> Tensor:
    """(images, places, groups, outputs / groups)."""
    (slopes,) = call.gradients
    by_image = slopes.movedim(axis, 0) if shape.linear else slopes.movedim(1, -1)
    return by_image.reshape(images, -1, shape.groups, shape.outputs // shape.groups)
