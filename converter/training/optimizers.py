"""What moves the weights, and how far at each step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ..conversion.attached import low_rank_layers
from ..conversion.muon import Muon, matrices_apart
from ..conversion.step_sizes import matrix_step_size, step_size
from ..errors import TrainingError
from .config import FinetuneConfig, OptimizerKind

_MATRICES = 0.3
"""Of the rate of all else, by Muon: what a factor may move by, in its own size."""


def optimizer_for(model: nn.Module, config: FinetuneConfig) -> torch.optim.Optimizer:
    """An optimizer of all that wants a gradient; singular values, biases and normalisation do not decay.

    Raises:
        TrainingError: nothing wants one.
    """
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not wanting:
        raise TrainingError("no parameter of the model wants a gradient; unfreeze some (requires_grad_)")
    if config.optimizer is OptimizerKind.ADAM:
        sizes = [{"params": [one], "scale": step_size(one)} for one in wanting]
        return torch.optim.Adam(sizes, lr=config.learning_rate)
    matrices, others = matrices_apart(model, wanting) if config.optimizer is OptimizerKind.MUON else ([], wanting)
    scales = {id(layer.s) for layer in low_rank_layers(model).values()}
    spared = [one for one in others if one.dim() < 2 or id(one) in scales]
    kept = {id(one) for one in spared}
    decayed = {"weight_decay": config.weight_decay}
    groups: list[dict[str, Any]] = [
        {"params": [one for one in others if id(one) not in kept], **decayed},
        {"params": spared, "weight_decay": 0.0},
    ]
    if config.optimizer is OptimizerKind.ADAMW:
        return torch.optim.AdamW(groups, lr=config.learning_rate)
    sgd: dict[str, Any] = {"momentum": config.momentum, "nesterov": config.momentum > 0}
    if config.optimizer is OptimizerKind.MUON:
        sizes = [{"params": [one], "scale": _MATRICES * matrix_step_size(one), **decayed} for one in matrices]
        return Muon(sizes, [{**group, **sgd} for group in groups if group["params"]])
    return torch.optim.SGD(groups, lr=config.learning_rate, **sgd)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)


def rate_at(step: int, steps: int, config: FinetuneConfig) -> float:
    """The learning rate of a step (from 1): it rises in a straight line, then falls as a cosine."""
    done = min(1.0, (step - 1) / steps)
    if done < config.warmup:
        return config.learning_rate * (done + 1e-3) / (config.warmup + 1e-3)
    return (
        config.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - config.warmup) / max(1e-9, 1 - config.warmup)))
    )
