"""The map from a layer's new input that comes nearest to what the layer gave, held to its own weight by a ridge.

A layer of many inputs and few images can follow every one of these images and be wrong on all others. So the ridge is
chosen on images that were not fitted on: the fewer the samples, or the less there is to make up for, the nearer the
map stays to the layer's own weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .moments import PairMoments

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, math.inf)
"""To choose from, relative to the mean of a moment's diagonal; at infinity nothing is fitted."""


@torch.no_grad()
def nearest_map(matrix: Tensor, moments: PairMoments, ridge: float) -> Tensor:
    """A = (M E[x z^T] + ridge M) (E[z z^T] + ridge I)^-1: nearest to M x as seen from z.

    Args:
        matrix: M (..., m, n), float64.
        moments: of x and z.
        ridge: relative; the same amount is added to both moments, so that without data the map is M itself.

    Returns:
        (..., m, n).
    """
    if math.isinf(ridge):
        return matrix
    second = moments.ridged(ridge)
    cross = moments.cross + (second - moments.second)
    root = torch.linalg.cholesky(second)
    return matrix @ torch.cholesky_solve(cross.mT, root).mT


def best_ridge(fit: Callable[[float], Tensor], cross: Tensor, second: Tensor) -> float:
    """The one of RIDGES whose map is nearest on images that it was not fitted on; the largest of equal ones.

    Args:
        fit: makes the map (..., m, n) at a ridge.
        cross, second: E[y z^T] (..., m, n) and E[z z^T] (..., n, n) on those images, y being what is wanted.
    """

    def misfit(ridge: float) -> float:  # less E[y y^T], which is the same for all
        weight = fit(ridge)
        error = float((weight @ second * weight).sum() - 2 * (weight * cross).sum())
        return error if math.isfinite(error) else math.inf

    return min(reversed(RIDGES), key=misfit)
