"""How far a network's answers move when one layer computes something else: many layers and changes in one pass.

To second order the divergence of the answers is half of E (sum g d)^2, where d is the change of the layer's output
and g the gradient of v . scores, with v noise of the covariance diag(p) - p p^T that the answers p have. One pass
forward and back gives g for every layer, and each change costs one run of its layer alone, however deep the network.

Source: the Gauss-Newton (Fisher) approximation, as in Martens (2014), "New insights and perspectives on the natural
gradient method"; answers softened as in distillation, for those of a sure network have no slope to speak of.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .probe import evaluating, layer_input
from .running import run, scores_in

TEMPERATURE = 4.0
"""By which scores are divided; divergences are given times its square, so that they compare with those at 1."""

_BATCH_BYTES = 2**30


@dataclass(frozen=True)
class Effect:
    """What a change of a layer does, that layer alone being changed.

    Attributes:
        nats: divergence of the answers.
        lost: squared change of the layer's output, relative to its variance.
    """

    nats: float
    lost: float


@dataclass
class _Call:
    """One call of a layer: what it read, when that was last written to, how its output varies, and its gradient."""

    given: Tensor
    version: int
    variation: float
    gradients: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def answer_changes(
    model: nn.Module,
    images: Tensor,
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
        for part in torch.split(images, max(2, min(64, _BATCH_BYTES // (2 * max(1, bytes_an_image))))):
            calls, rows = _calls(model, modules, part, generator)
            answers += rows
            for name, module in modules.items():
                if name in unknown:
                    continue
                axis = axes[name]
                assert axis is not None
                if not calls[name] or not all(_usable(call, axis, len(part)) for call in calls[name]):
                    unknown.add(name)
                    continue
                variation[name] += sum(call.variation for call in calls[name])
                for place, change in enumerate(changes[name]):
                    slopes = torch.zeros(len(part), dtype=torch.float64, device=part.device)
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


def _calls(
    model: nn.Module, modules: Mapping[str, nn.Module], images: Tensor, generator: torch.Generator
) -> tuple[dict[str, list[_Call]], int]:
    """What each layer read and the gradient of what it gave; and how many answers there were."""
    calls: dict[str, list[_Call]] = {name: [] for name in modules}

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            given = layer_input(inputs, keywords)
            if given is None or not isinstance(output, Tensor):
                return
            call = _Call(given.detach(), given._version, float(_centred(output.detach(), module).square().sum()))
            if output.requires_grad:
                output.register_hook(call.gradients.append)  # type: ignore[no-untyped-call]
            calls[name].append(call)

        return hook

    handles = [module.register_forward_hook(record(name), with_kwargs=True) for name, module in modules.items()]
    try:
        with torch.enable_grad():
            given = images.clone().requires_grad_(images.is_floating_point())
            scores = scores_in(run(model, given.clone())).float()  # a network may write to its input
            scores = scores.movedim(1, -1) if scores.dim() == 4 else scores
            shares = (scores.detach() / TEMPERATURE).softmax(-1)
            noise = torch.randn(shares.shape, generator=generator, device=shares.device) * shares.sqrt()
            direction = (noise - shares * noise.sum(-1, keepdim=True)) / TEMPERATURE
            # A network that was never trained here may write to what its gradients need: then there are none.
            with contextlib.suppress(RuntimeError):
                if scores.requires_grad:
                    torch.autograd.backward((scores * direction).sum(), inputs=[given])
    finally:
        for handle in handles:
            handle.remove()
    return calls, max(1, scores.numel() // max(1, scores.shape[-1]))


def _usable(call: _Call, axis: int, images: int) -> bool:
    """Whether a call has a gradient, an input that nobody wrote to since, and whole blocks of images in both."""
    if len(call.gradients) != 1 or call.given._version != call.version:
        return False
    return all(x.dim() > axis and x.shape[axis] % images == 0 for x in (call.given, call.gradients[0]))


def _moved(module: nn.Module, change: Tensor, call: _Call) -> Tensor:
    """Change of the output, less its mean; in the weight's precision, whatever the network runs in."""
    given = call.given.to(change.dtype)
    with torch.autocast(given.device.type, enabled=False):
        if isinstance(module, nn.Conv2d):
            return _centred(module._conv_forward(given, change, None), module)
        return _centred(F.linear(given, change), module)


def _centred(output: Tensor, module: nn.Module) -> Tensor:
    """Less the mean over all but the channels, (N, C, H, W) or (C, H, W), or (..., features) of a dense layer."""
    channels = output.dim() - (3 if isinstance(module, nn.Conv2d) else 1)
    return output - output.mean([axis for axis in range(output.dim()) if axis != channels], keepdim=True)
