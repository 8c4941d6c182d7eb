"""What each layer loses at each rank, and the distortions that a plan may be made of."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch

from ..errors import ModelError
from .calibration import Energies

BLENDS = (0.75, 1.0, 0.5)
"""Weights of nats that are worth a trial, the one to take without a trial first."""

_SPREAD = 0.25
"""Of the logarithms by which a layer's losses are scaled for a trial."""


class Sensitivity(str, Enum):
    """What a plan takes as the loss of a layer at a rank."""

    BEST = "best"
    ENERGY = "energy"
    KL = "kl"
    MIXED = "mixed"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Losses:
    """What each layer loses at each rank, and what that costs the network, on images that nothing was fitted on.

    Attributes:
        errors: lost part of what varies in the layer's output, or in what a BatchNorm behind makes of it, by
            (layer, form) at each rank from 0 to full.
        nats: divergence of the network's answers, that layer alone being cut; the same.
    """

    errors: Energies
    nats: Energies

    def distortions(self, kind: Sensitivity) -> Energies:
        """What a budget's plan shall minimise the sum of; `best` has several, see `to_try`."""
        if kind is Sensitivity.BEST:
            raise ModelError("the best of several sensitivities needs trials; take those that `Losses.to_try` gives")
        return self.blend({Sensitivity.ENERGY: 0.0, Sensitivity.MIXED: 0.5, Sensitivity.KL: 1.0}[kind])

    def blend(self, weight: float) -> Energies:
        """The geometric mean of nats and errors: nats alone at weight 1, errors alone at 0."""
        return {key: nats**weight * self.errors[key] ** (1 - weight) for key, nats in self.nats.items()}

    def to_try(self, count: int, seed: int = 0) -> list[Energies]:
        """Distortions whose plans are worth a trial.

        Args:
            count: how many, one at least; of the first ones BLENDS has the weights.
            seed: of the others: blends in which each layer's losses are multiplied by exp(0.25 n), n standard normal.

        Source of the others: SPDY (Frantar and Alistarh 2022).
        """
        found = [self.blend(weight) for weight in BLENDS[:count]]
        generator = torch.Generator().manual_seed(seed)
        names = list(dict.fromkeys(name for name, _ in self.nats))
        while len(found) < count:
            scales = dict(zip(names, torch.exp(_SPREAD * torch.randn(len(names), generator=generator)), strict=True))
            blend = found[len(found) % len(BLENDS)]
            found.append({key: float(scales[key[0]]) * loss for key, loss in blend.items()})
        return found
