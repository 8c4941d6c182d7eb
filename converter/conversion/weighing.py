"""How much each image counts in a layer's fit: the less, the more strongly the layer answers to it.

What the layers before a layer got wrong grows with what they answered, and a few images that a network answers to
many times as strongly as to others would decide every fit. Least squares are efficient where each sample is weighted
by the inverse of its error's variance, which is taken to be in part the same for all images, and in part to grow
with the power of the answer.

Source: weighted least squares, Aitken (1936).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_PLACES = 400
"""Of an image, to take its power from, at least, where it has so many."""


class Power(NamedTuple):
    """What a layer gives to some images, by image and channel.

    Attributes:
        mean, square: (images, channels) float64, of the values and of their squares, over some hundred places.
    """

    mean: Tensor
    square: Tensor


def power(output: Tensor, axis: int, images: int, linear: bool) -> Power:
    """Of a layer's answers.

    Args:
        output: (N, channels, ...), or (..., features) of a linear layer.
        axis: that counts the images, with one block or more of each.
        images: how many.
        linear: whether features lie on the last axis.
    """
    channels_last = output.movedim(axis, 0) if linear else output.movedim(1, -1)
    places = channels_last.reshape(images, -1, channels_last.shape[-1])
    places = places[:, :: max(1, places.shape[1] // _PLACES)].float()
    norms = torch.linalg.vector_norm(places, dim=1)  # squares of wide maps are not kept
    return Power(places.mean(1).double(), norms.double().square() / places.shape[1])


def image_weights(powers: Sequence[Power]) -> list[Tensor]:
    """How much each image counts, about 1.

    Args:
        powers: of all images, in batches.

    Returns:
        For each batch (images,) float32: 2 / (1 + p), p being the power of what varies in the answer to an image,
        over that of all images; channels count alike.
    """
    mean = torch.cat([batch.mean for batch in powers])
    overall = mean.mean(0)
    varying = torch.cat([batch.square for batch in powers]) - 2 * overall * mean + overall.square()
    relative = varying.clamp_min(0.0) / varying.mean(0).clamp_min(1e-300)
    counted = 2 / (1 + relative.mean(1))
    return list(torch.split(counted.float(), [len(batch.mean) for batch in powers]))
