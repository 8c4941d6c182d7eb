"""How far a network's answers move when one layer computes something else: many layers and changes in one pass.

One pass forward and back gives the slopes of the answers at every layer, and each change costs one run of its layer
alone, however deep the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..lowrank.layers import convolve
from ..lowrank.shapes import Plain, shape_of
from .answer_slopes import TEMPERATURE, Call, answer_slopes, centred, images_with_slopes, usable
from .inputs import Samples
from .probe import evaluating


@dataclass(frozen=True)
class Effect:
    """What a change of a layer does, that layer alone being changed.

    Attributes:
        nats: divergence of the answers.
        lost: squared change of the layer's output, relative to its variance.
    """

    nats: float
    lost: float


@torch.no_grad()
def answer_changes(
    model: nn.Module,
    images: Samples,
    changes: Mapping[str, Sequence[Tensor]],
    axes: Mapping[str, int | None],
    *,
    bytes_an_image: int,
) -> dict[str, list[Effect]]:
    """What each change of a layer's weight does to its output and to the answers.

    A change of a channel's mean counts nothing: the layer's bias, or the norm behind it, takes it up.

    Args:
        model: gives (N, classes), or several outputs of which the first is that; its parameters need no gradient.
        images: (N, ...).
        changes: by layer, what is added to its weight, each of the weight's shape.
        axes: along which a layer's input counts the images, from `batch_axes`.
        bytes_an_image: inputs and outputs of all these layers together, which decides how many run at once.

    Returns:
        An effect for each change, by layer; a layer is missing where its output has no gradient, or its input does
        not carry the images one beside the other.
    """
    modules = {name: model.get_submodule(name) for name in changes}
    squares = {name: [0.0] * len(of_layer) for name, of_layer in changes.items()}
    lost = {name: [0.0] * len(of_layer) for name, of_layer in changes.items()}
    variation = dict.fromkeys(changes, 0.0)
    unknown = {name for name in changes if axes.get(name) is None}
    generator = torch.Generator(images.device).manual_seed(0)
    answers = 0
    with evaluating(model):
        for part in images.split(images_with_slopes(bytes_an_image)):
            calls, rows = answer_slopes(model, modules, part, generator)
            answers += rows
            for name, module in modules.items():
                if name in unknown:
                    continue
                axis = axes[name]
                assert axis is not None
                if not calls[name] or not all(usable(call, axis, len(part)) for call in calls[name]):
                    unknown.add(name)
                    continue
                variation[name] += sum(call.variation for call in calls[name])
                for place, change in enumerate(changes[name]):
                    slopes = torch.zeros(len(part), dtype=torch.float64, device=images.device)
                    for call in calls[name]:
                        moved = _moved(module, change, call)
                        lost[name][place] += float(moved.square().sum())
                        slope = (moved * call.gradients[0]).movedim(axis, 0).reshape(len(part), -1).sum(1)
                        slopes += slope.double()
                    squares[name][place] += float(slopes.square().sum())
    scale = 0.5 * TEMPERATURE**2 / max(1, answers)
    return {
        name: [
            Effect(scale * square, gone / max(1e-300, variation[name]))
            for square, gone in zip(squares[name], lost[name], strict=True)
        ]
        for name in changes
        if name not in unknown
    }


def _moved(module: nn.Module, change: Tensor, call: Call) -> Tensor:
    """Change of the output, less its mean; in the weight's precision, whatever the network runs in."""
    given = call.given.to(change.dtype)
    with torch.autocast(given.device.type, enabled=False):
        assert isinstance(module, Plain)
        shape = shape_of(module)
        moved = F.linear(given, change) if shape.linear else convolve(given, change, None, shape)
        return centred(moved, module)
