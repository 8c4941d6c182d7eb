"""How far one step of Adam may move a tensor, and all of them together."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..analysis.inputs import Samples
from .matching import Pair

_FAN_IN = 16
"""Inputs of a layer above which steps are shorter: small ones that agree add up over the inputs."""

_SMALLEST = 1e-2
"""Size that a tensor near zero is taken to have: a bias of zeros must be able to move."""

_RATES = tuple(0.03 * 10 ** (-place / 4) for place in range(13))
"""To try, from the longest to a thousandth of it."""


def step_size(tensor: Tensor) -> float:
    """What a rate of 1 moves each value by: the size of the values, less where a layer adds up many of them."""
    size = float(tensor.detach().float().square().mean().sqrt())
    inputs = tensor[0].numel() if tensor.dim() > 1 else 1
    return max(size, _SMALLEST) * math.sqrt(_FAN_IN / max(_FAN_IN, inputs))


@torch.no_grad()
def longest_rate(pair: Pair, images: Samples, parameters: Iterable[nn.Parameter]) -> float:
    """The longest step that does not raise the loss of the images that it was made for.

    All tensors move against the signs of their gradients, as Adam's first step does, by a rate of their `step_size`.
    Were the loss a parabola along this way, its lowest point would lie half as far, and gradient descent would
    diverge beyond.

    Args:
        pair: of the networks.
        images: (N, ...) a batch.
        parameters: that may move; they are as they were afterwards, without gradients.

    Returns:
        The rate: at most 0.03, at least a thousandth of that.
    """
    before = pair.backward(images)
    moved = [(one, one.clone(), step_size(one) * one.grad.sign()) for one in parameters if one.grad is not None]
    try:
        for rate in _RATES:
            for one, start, way in moved:
                one.copy_(start - rate * way)
            if pair.loss(images) <= before:  # a loss that is no number is not
                break
    finally:
        for one, start, _ in moved:
            one.copy_(start)
            one.grad = None
    return rate
