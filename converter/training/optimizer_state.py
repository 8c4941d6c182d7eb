"""Keeping an optimizer in step with factors that change shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..lowrank.decomposition import Factors

# Averages of gradients turn with the basis; averages of squared gradients turn by the squares of the map.
_POWERS = {"momentum_buffer": 1, "exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2}


def replace_factors(
    optimizer: torch.optim.Optimizer | None,
    old: Sequence[nn.Parameter],
    new: Sequence[nn.Parameter],
    carry: Callable[[Factors, int], Factors],
) -> None:
    """Puts the factors of a layer in others' place, and carries their state over.

    Args:
        optimizer: SGD, Adam or AdamW; None does nothing.
        old, new: u, s and v; may differ in shape.
        carry: maps the three state tensors of one kind (float64, of the shapes of old; zeros where a factor has
            none) and a power to those of new. Power 1 is for averages of the gradient, 2 for averages of its square.
    """
    if optimizer is None:
        return
    states = swap_parameters(optimizer, old, new)
    per_entry = {
        key
        for state, parameter in zip(states, old, strict=True)
        for key, value in state.items()
        if isinstance(value, Tensor) and value.dim() > 0 and value.shape == parameter.shape
    }
    for key in per_entry:
        held = Factors(
            *(
                torch.zeros_like(parameter, dtype=torch.float64) if state.get(key) is None else state[key].double()
                for state, parameter in zip(states, old, strict=True)
            )
        )
        for state, moved, parameter in zip(states, carry(held, _POWERS.get(key, 1)), new, strict=True):
            if state.get(key) is not None:
                state[key] = moved.to(state[key].dtype).reshape(parameter.shape).contiguous()
    for state, parameter in zip(states, new, strict=True):
        if state:
            optimizer.state[parameter] = state


def swap_parameters(
    optimizer: torch.optim.Optimizer, old: Sequence[nn.Parameter], new: Sequence[nn.Parameter]
) -> list[dict[str, Tensor]]:
    """Puts parameters in others' place, and gives the state of these, which the optimizer forgets."""
    fresh = dict(zip(old, new, strict=True))
    for group in optimizer.param_groups:
        group["params"] = [fresh.get(parameter, parameter) for parameter in group["params"]]
    return [optimizer.state.pop(parameter, {}) for parameter in old]
