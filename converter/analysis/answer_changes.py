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
from .answer_slopes import TEMPERATURE, Call, answer_slopes, centred, images_with_slopes, squared, usable
from .inputs import Samples
from .probe import evaluating
from .window_changes import window_changes, windows_pay


@dataclass(frozen=True)
class Effect:
    """What a change of a layer does, that layer alone being changed.

    Attributes:
        nats: divergence of the answers.
        lost: squared change of the layer's output, or of the output of the norm behind it, relative to its variance.
    """

    nats: float
    lost: float


@torch.no_grad()
def answer_changes(
    model: nn.Module,
    images: Samples,
    changes: Mapping[str, Sequence[Tensor]],
    axes: Mapping[str, int | None],
    scales: Mapping[str, Tensor],
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
        scales: (outputs,) of the norm behind a layer, where there is one.
        bytes_an_image: inputs and outputs of all these layers together, which decides how many run at once.

    Returns:
        An effect for each change, by layer; a layer is missing where its output has no gradient, or its input does
        not carry the images one beside the other.
    """
    modules = {name: model.get_submodule(name) for name in changes}
    squares, lost, whole = (dict.fromkeys(changes, torch.zeros(1).double()) for _ in range(3))
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
                found = [_changed(module, changes[name], call, axis, len(part)) for call in calls[name]]
                lost[name] = lost[name] + sum(gone for gone, _ in found)
                whole[name] = whole[name] + sum(call.variation for call in calls[name])
                squares[name] = squares[name] + torch.stack([slopes for _, slopes in found]).sum(0).square().sum(1)
    scale = 0.5 * TEMPERATURE**2 / max(1, answers)
    effects = {}
    for name in changes:
        if name not in unknown:
            parts = _part(lost[name], whole[name], scales.get(name))
            nats = (scale * squares[name]).tolist()
            effects[name] = [Effect(*effect) for effect in zip(nats, parts, strict=True)]
    return effects


def _part(lost: Tensor, whole: Tensor, scale: Tensor | None) -> list[float]:
    """How much of the outputs is lost, all together, or as a norm sees them: each over its own variance.

    Args:
        lost: (changes, outputs).
        whole: (outputs,).
        scale: (outputs,) of the norm.
    """
    if scale is None:
        part = lost.sum(-1) / whole.sum().clamp_min(1e-300)
    else:
        felt = scale.double().square() * (whole > 0)
        part = (lost / whole.clamp_min(1e-300)) @ felt / felt.sum().clamp_min(1e-300)
    return part.tolist()


def _changed(
    module: nn.Module, changes: Sequence[Tensor], call: Call, axis: int, images: int
) -> tuple[Tensor, Tensor]:
    """For each change, float64: the squared change of each output, and the answers' slope along it (changes, images).

    In the weight's precision, whatever the network runs in.
    """
    assert isinstance(module, Plain)
    shape, given, (slopes,) = shape_of(module), call.given.to(changes[0].dtype), call.gradients
    with torch.autocast(given.device.type, enabled=False):
        if windows_pay(shape, slopes.numel() // shape.outputs, len(changes)):
            lost, along = window_changes(changes, given, slopes, shape)
            return lost.cpu(), along.reshape(len(changes), images, -1).sum(-1).double().cpu()
        gone, found = [], []
        for change in changes:
            moved = centred(F.linear(given, change) if shape.linear else convolve(given, change, None, shape), module)
            gone.append(squared(moved, module))
            found.append((moved * slopes).movedim(axis, 0).reshape(images, -1).sum(1))
        return torch.stack(gone), torch.stack(found).double().cpu()
