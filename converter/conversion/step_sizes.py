"""How far one step may move a tensor, and all of them together."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..analysis.inputs import Samples
from .matching import Pair
from .muon import orthogonal

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


def matrix_step_size(matrix: Tensor) -> float:
    """What a rate of 1 moves a matrix by along each direction: the size of its singular values."""
    return max(float(matrix.detach().float().norm()) / math.sqrt(min(matrix.shape)), _SMALLEST)


@torch.no_grad()
def longest_rate(
    pair: Pair, images: Samples, matrices: Iterable[nn.Parameter], others: Iterable[nn.Parameter]
) -> float:
    """The longest step that does not raise the loss of the images that it was made for.

    All tensors move as by the first step of their optimizer, a rate of their size: matrices against the orthogonal
    part of their gradients, as Muon does, the others against the signs, as Adam does. Were the loss a parabola along
    this way, its lowest point would lie half as far, and gradient descent would diverge beyond.

    Args:
        pair: of the networks.
        images: (N, ...) a batch.
        matrices, others: that may move; they are as they were afterwards, without gradients.

    Returns:
        The rate: at most 0.03, at least a thousandth of that.
    """
    before = pair.backward(images)
    moving = [(one, one.grad) for one in matrices if one.grad is not None]
    turned = orthogonal([gradient for _, gradient in moving])
    ways = [(one, matrix_step_size(one) * way) for (one, _), way in zip(moving, turned, strict=True)]
    ways += [(one, step_size(one) * one.grad.sign()) for one in others if one.grad is not None]
    moved = [(one, one.clone(), way) for one, way in ways]
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
