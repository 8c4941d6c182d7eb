"""How far answers are softened before they are compared.

Sure answers, as those to images that a network has learned by heart, say little of how near others came. Answers that
are not sure are taken as they are: softened, a thousand classes would count the same, those that nobody takes for the
right one as much as those that are in question.

Source: temperatures as in distillation, Hinton et al. (2015).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .divergence import answers, softened
from .inputs import Samples

_TEMPERATURES, _SURE = (1.0, 2.0, 4.0), 0.9

_IMAGES = 64
"""Whose answers tell."""


def softening(wanted: Sequence[Tensor]) -> float:
    """The first temperature of 1, 2 and 4 at which the largest share of an answer is at most 0.9 on average, or 4.

    Args:
        wanted: log-probabilities (..., classes).
    """
    for temperature in _TEMPERATURES[:-1]:
        largest = torch.cat([softened(part, temperature).amax(-1).flatten() for part in wanted])
        if float(largest.exp().mean()) <= _SURE:
            return temperature
    return _TEMPERATURES[-1]


def softening_of(model: nn.Module, images: Samples) -> float:
    """The temperature at which a network's answers to some of the images are not too sure.

    Args:
        model: gives (N, classes), or several outputs of which the first is that.
        images: (N, ...).

    Raises:
        ModelError: the network gives no scores, or cannot take the images.
    """
    some = images[:: -(-len(images) // _IMAGES)].clone()  # a network may write to its input
    return softening(answers(model, some))
