"""Keeping an optimizer in step with parameters that change shape."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

# Averages of gradients turn with the basis; averages of squared gradients turn by the squares of the map.
_POWERS = {"momentum_buffer": 1, "exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}


def replace_parameter(
    optimizer: torch.optim.Optimizer | None,
    old: nn.Parameter,
    new: nn.Parameter,
    carry: Callable[[Tensor, int], Tensor],
) -> None:
    """Puts a parameter in another's place, and carries its state over.

    Args:
        optimizer: SGD, Adam or AdamW; None does nothing.
        old, new: may differ in shape.
        carry: maps a state tensor (float64, of old's shape) and a power to one of new's shape. Power 1 is for
            averages of the gradient, 2 for averages of its square.
    """
    if optimizer is None:
        return
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    state = optimizer.state.pop(old, None)
    if state is None:
        return
    for key, value in state.items():
        if isinstance(value, Tensor) and value.shape == old.shape and value.dim() > 0:
            moved = carry(value.double(), _POWERS.get(key, 1))
            state[key] = moved.to(value.dtype).reshape(new.shape).contiguous()
    optimizer.state[new] = state
