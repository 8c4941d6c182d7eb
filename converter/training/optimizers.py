"""What moves the weights, and how far at each step."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..conversion.attached import low_rank_layers
from ..conversion.step_sizes import step_size
from ..errors import TrainingError
from .config import FinetuneConfig, OptimizerKind


def optimizer_for(model: nn.Module, config: FinetuneConfig) -> torch.optim.Optimizer:
    """An optimizer of all that wants a gradient; singular values, biases and normalisation do not decay.

    Raises:
        TrainingError: nothing wants one.
    """
    scales = {id(layer.s) for layer in low_rank_layers(model).values()}
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (spared if parameter.dim() < 2 or id(parameter) in scales else decayed).append(parameter)
    if not decayed and not spared:
        raise TrainingError("no parameter of the model wants a gradient; unfreeze some (requires_grad_)")
    if config.optimizer is OptimizerKind.ADAM:
        tensors = [*decayed, *spared]
        return torch.optim.Adam(
            [{"params": [one], "scale": step_size(one)} for one in tensors], lr=config.learning_rate
        )
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    if config.optimizer is OptimizerKind.ADAMW:
        return torch.optim.AdamW(groups, lr=config.learning_rate)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0)


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
