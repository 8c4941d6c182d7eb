"""Which way the answers go when a layer's output moves: gradients of the answers, from one pass forward and back.

To second order the divergence of the answers is half of E (sum g d)^2, where d is the change of the layer's output
and g the gradient of v . scores, with v noise of the covariance diag(p) - p p^T that the answers p have.

Source: the Gauss-Newton (Fisher) approximation, as in Martens (2014), "New insights and perspectives on the natural
gradient method"; answers softened as in distillation, for those of a sure network have no slope to speak of.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..lowrank.shapes import Plain, shape_of
from .inputs import Samples
from .probe import layer_input
from .running import class_axis, run, scores_in

TEMPERATURE = 4.0
"""By which scores are divided; divergences are given times its square, so that they compare with those at 1."""

_BATCH_BYTES = 3 * 2**28


def images_with_slopes(bytes_an_image: int) -> int:
    """Images that go forward and back at a time.

    Args:
        bytes_an_image: inputs and outputs of all layers of interest together.
    """
    return max(2, min(64, _BATCH_BYTES // (2 * max(1, bytes_an_image))))


@dataclass
class Call:
    """One call of a layer: what it read, when that was last written to, how its outputs vary, and its gradient."""

    given: Tensor
    version: int
    variation: Tensor
    gradients: list[Tensor] = field(default_factory=list)


def answer_slopes(
    model: nn.Module, modules: Mapping[str, nn.Module], images: Samples, generator: torch.Generator
) -> tuple[dict[str, list[Call]], int]:
    """What each layer read and the gradient of what it gave; and how many answers there were.

    Gradients go back to the first of these layers, not to the images.
    """
    calls: dict[str, list[Call]] = {name: [] for name in modules}
    tracked: list[Tensor] = []

    def record(name: str) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Tensor | None:
            given = layer_input(inputs, keywords)
            if given is None or not isinstance(output, Tensor):
                return None
            call = Call(given.detach(), given._version, squared(centred(output.detach(), module), module))
            calls[name].append(call)
            followed: Tensor = output
            if torch.is_grad_enabled() and not output.requires_grad:
                tracked.append(output.detach().requires_grad_())
                followed = tracked[-1].clone()  # the network may write to it
            if followed.requires_grad:
                followed.register_hook(call.gradients.append)  # type: ignore[no-untyped-call]
            return followed

        return hook

    handles = [module.register_forward_hook(record(name), with_kwargs=True) for name, module in modules.items()]
    try:
        with torch.enable_grad():
            scores = scores_in(run(model, images.clone())).float()  # a network may write to its input
            scores = scores.movedim(class_axis(scores), -1)
            shares = (scores.detach() / TEMPERATURE).softmax(-1)
            noise = torch.randn(shares.shape, generator=generator, device=shares.device) * shares.sqrt()
            direction = (noise - shares * noise.sum(-1, keepdim=True)) / TEMPERATURE
            # A network that was never trained here may write to what its gradients need: then there are none.
            with contextlib.suppress(RuntimeError):
                if scores.requires_grad and tracked:
                    torch.autograd.backward((scores * direction).sum(), inputs=tracked)
    finally:
        for handle in handles:
            handle.remove()
    return calls, max(1, scores.numel() // max(1, scores.shape[-1]))


def usable(call: Call, axis: int, images: int) -> bool:
    """Whether a call has a gradient, an input that nobody wrote to since, and whole blocks of images in both."""
    if len(call.gradients) != 1 or call.given._version != call.version:
        return False
    return all(x.dim() > axis and x.shape[axis] % images == 0 for x in (call.given, call.gradients[0]))


def centred(output: Tensor, module: nn.Module) -> Tensor:
    """Less the mean over all but the channels, (N, C, ...) or (C, ...), or (..., features) of a dense layer."""
    return output - output.mean(_across(output, module), keepdim=True)


def squared(output: Tensor, module: nn.Module) -> Tensor:
    """(channels,) float64: squares, summed over all but the channels."""
    return output.square().sum(_across(output, module)).double().cpu()


def _across(output: Tensor, module: nn.Module) -> list[int]:
    assert isinstance(module, Plain)
    channels = shape_of(module).channel_axis(output.dim())
    return [axis for axis in range(output.dim()) if axis != channels % output.dim()]
