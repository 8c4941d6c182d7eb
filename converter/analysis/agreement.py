"""How often two networks give the same answer: what can be said without a label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .accuracy import device_of
from .probe import evaluating
from .running import run, scores_in


@dataclass(frozen=True)
class Agreement:
    """How often the top answers of two networks are the same.

    Attributes:
        part: of the answers, 0..1.
        images: on how many images.
    """

    part: float
    images: int

    def __str__(self) -> str:
        return f"{100 * self.part:.1f} % of {self.images:,} images"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"part": self.part, "images": self.images}


@torch.no_grad()
def agreement(model: nn.Module, dense: nn.Module, images: Tensor, *, batch: int = 50) -> Agreement:
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
    with evaluating(model), evaluating(dense):
        for part in torch.split(images, batch):
            ours, theirs = (_top(network, part) for network in (model, dense))
            same += int((ours == theirs).sum())
            answers += ours.numel()
    return Agreement(same / max(1, answers), len(images))


def _top(model: nn.Module, images: Tensor) -> Tensor:
    scores = scores_in(run(model, images.to(device_of(model))))
    return scores.argmax(1 if scores.dim() == 4 else -1).cpu()
