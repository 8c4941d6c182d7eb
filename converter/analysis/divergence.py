"""How far two networks' answers are apart, in nats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .inputs import Samples
from .probe import evaluating
from .running import log_probabilities, run


@torch.no_grad()
def answers(model: nn.Module, images: Samples, *, batch: int = 50, temperature: float = 1.0) -> list[Tensor]:
    """Log-probabilities of each batch, softened at temperatures above 1.

    Args:
        model: gives (N, classes), or several outputs of which the first is that.
        images: (N, ...).
        batch: images a forward pass.
    """
    with evaluating(model):
        parts = [log_probabilities(run(model, part)) for part in images.split(batch)]
    return [softened(part, temperature) for part in parts]


def softened(answers: Tensor, temperature: float) -> Tensor:
    """Log-probabilities (..., classes) at a temperature."""
    return answers if temperature == 1.0 else F.log_softmax(answers / temperature, -1)


def divergence_between(ours: Sequence[Tensor], wanted: Sequence[Tensor], images: int) -> float:
    """Kullback-Leibler divergence of answers from those wanted, in nats an image; infinite where it is no number."""
    pairs = zip(ours, wanted, strict=True)
    total = sum(float(F.kl_div(mine, theirs, log_target=True, reduction="sum")) for mine, theirs in pairs)
    return math.inf if math.isnan(total) else total / max(1, images)


def divergence(model: nn.Module, dense: nn.Module, images: Samples, *, batch: int = 50) -> float:
    """Mean Kullback-Leibler divergence of the outputs from the dense network's, in nats an image.

    Args:
        model, dense, images, batch: as for `answers`.
    """
    return divergence_between(answers(model, images, batch=batch), answers(dense, images, batch=batch), len(images))
