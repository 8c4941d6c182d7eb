"""Where a network in training is, as tensors and numbers: what a run that was cut off goes on from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..conversion.attached import low_rank_layers
from ..lowrank.layers import LowRank
from .optimizer_state import swap_parameters


def network_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Ranks, tensors and momenta. The tensors are the network's own: they go on changing."""
    return {
        "ranks": {name: layer.rank for name, layer in low_rank_layers(model).items()},
        "model": {name: value.detach() for name, value in model.state_dict().items() if isinstance(value, Tensor)},
        "optimizer": optimizer.state_dict(),
    }


def put_network_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Brings a network and its optimizer to a state, whatever their ranks are now.

    Raises:
        KeyError, RuntimeError, ValueError: the state is another network's.
    """
    for name, layer in low_rank_layers(model).items():
        if layer.rank != state["ranks"][name]:
            resize(layer, state["ranks"][name], optimizer)
    model.load_state_dict(state["model"])
    optimizer.state.clear()
    optimizer.load_state_dict(state["optimizer"])


def resize(layer: LowRank, rank: int, optimizer: torch.optim.Optimizer) -> None:
    """Gives a layer room for a rank, with nothing in it yet; the optimizer forgets what it knew of its factors."""
    held = (layer.u, layer.s, layer.v)
    sizes = ((*layer.u.shape[:-1], rank), (*layer.s.shape[:-1], rank), (*layer.v.shape[:-2], rank, layer.v.shape[-1]))
    layer.u, layer.s, layer.v = (
        nn.Parameter(old.detach().new_empty(size), old.requires_grad) for old, size in zip(held, sizes, strict=True)
    )
    swap_parameters(optimizer, held, (layer.u, layer.s, layer.v))
