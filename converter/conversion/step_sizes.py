"""How far one step of Adam may move a tensor."""

from __future__ import annotations

import math

from torch import Tensor

_FAN_IN = 16
"""Inputs of a layer above which steps are shorter: small ones that agree add up over the inputs."""

_SMALLEST = 1e-2
"""Size that a tensor near zero is taken to have: a bias of zeros must be able to move."""


def step_size(tensor: Tensor) -> float:
    """What a rate of 1 moves each value by: the size of the values, less where a layer adds up many of them."""
    size = float(tensor.detach().float().square().mean().sqrt())
    inputs = tensor[0].numel() if tensor.dim() > 1 else 1
    return max(size, _SMALLEST) * math.sqrt(_FAN_IN / max(_FAN_IN, inputs))
