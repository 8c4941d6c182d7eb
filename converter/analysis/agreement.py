"""How often two networks give the same answer, and how far apart they are: what can be said without a label."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .accuracy import device_of
from .divergence import divergence_between
from .inputs import Samples
from .probe import evaluating
from .running import log_probabilities, run


@dataclass(frozen=True)
class Agreement:
    """How often the top answers of two networks are the same.

    Attributes:
        part: of the answers, 0..1.
        images: on how many images.
        nats: mean Kullback-Leibler divergence of an image's answers from the dense network's.
    """

    part: float
    images: int
    nats: float

    def __str__(self) -> str:
        return f"{100 * self.part:.1f} % of {self.images:,} images"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        nats = self.nats if math.isfinite(self.nats) else None  # JSON has no infinity
        return {"part": self.part, "images": self.images, "nats": nats}


@torch.no_grad()
def agreement(model: nn.Module, dense: nn.Module, images: Samples, *, batch: int = 50) -> Agreement:
    """Compares the top answers of two networks.

    Args:
        model, dense: give (N, classes), or several outputs of which the first is that; maps of scores have an answer
            for each pixel.
        images: (N, ...), N >= 1, on which neither was fitted.
        batch: images a forward pass.

    Raises:
        ModelError: a network cannot take the images.
    """
    same = answers = 0
    nats = 0.0
    with evaluating(model), evaluating(dense):
        for part in images.split(batch):
            ours, theirs = (_answers(network, part) for network in (model, dense))
            same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
            answers += ours[..., 0].numel()
            nats += divergence_between([ours], [theirs], 1)
    return Agreement(same / max(1, answers), len(images), nats / max(1, len(images)))


def _answers(model: nn.Module, images: Samples) -> Tensor:
    return log_probabilities(run(model, images.to(device_of(model)))).cpu()
