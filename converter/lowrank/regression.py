"""The map from a layer's new input that comes nearest to what the layer gave, held to its own weight by a ridge.

A layer of many inputs and few images can follow every one of these images and be wrong on all others. So the ridge is
chosen on images that were not fitted on: the fewer the samples, or the less there is to make up for, the nearer the
map stays to the layer's own weight.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .moments import PairMoments

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, math.inf)
"""To choose from, relative to the mean of a moment's diagonal; at infinity nothing is fitted."""

_CHOOSING = 128
"""Rows of a map that choose its ridge: each is a regression of its own, and all share the ridge."""


Part = tuple[PairMoments, float, bool]
PartOrNone = tuple[PairMoments | None, float, bool]
"""Moments, how much the images count that they are of, and whether these judge."""


class Split(NamedTuple):
    """Moments of images to fit on, and of others that judge.

    Attributes:
        fitted, judged: of either; judged is None where there are too few images to spare some.
        part: of all samples that judge, 0..1.
    """

    fitted: PairMoments
    judged: PairMoments | None
    part: float

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Split:
        """Of moments some of which do not judge."""
        judging = sum(count for _, count, judges in parts if judges)
        judged = _pooled([(moments, count) for moments, count, judges in parts if judges]) if judging else None
        fitted = _pooled([(moments, count) for moments, count, judges in parts if not judges])
        return cls(fitted, judged, judging / sum(count for _, count, _ in parts))

    @staticmethod
    def gather(parts: list[Part], part: PartOrNone) -> None:
        """Adds moments, if any, to others, for `of`: pooled with the last ones where both judge, or neither does."""
        moments, count, judges = part
        if moments is None:
            return
        if parts and parts[-1][2] == judges:
            before, others, _ = parts.pop()
            count += others
            moments = before.pooled(moments, part[1] / count)
        parts.append((moments, count, judges))

    def pooled(self) -> PairMoments:
        """Over all of them."""
        return self.fitted if self.judged is None else self.fitted.pooled(self.judged, self.part)


def _pooled(parts: Sequence[tuple[PairMoments, float]]) -> PairMoments:
    found, total = parts[0]
    for moments, count in parts[1:]:
        total += count
        found = found.pooled(moments, count / total)
    return found


@torch.no_grad()
def fit_on(
    split: Split, prior: Tensor, fit: Callable[[Tensor, PairMoments, float], Tensor], *, centred: bool
) -> tuple[Tensor, PairMoments]:
    """A map at the ridge that is the best one on the images that judge, fitted on all.

    Args:
        split: moments of what the map shall give, and of what it reads; without judges the ridge is the smallest.
        prior: (..., m, n), what a ridge holds the map to.
        fit: makes rows of the map (..., m, n) of as many rows of the prior, moments and a ridge.
        centred: whether a bias, or a norm behind, takes up the mean.

    Returns:
        The map, and the moments it was fitted on, centred if asked for.
    """

    def centre(moments: PairMoments) -> PairMoments:
        return moments.centred() if centred else moments

    ridge = RIDGES[0]
    if split.judged is not None:
        some = _some_rows(prior)
        fitted, judged = (
            moments._replace(cross=moments.cross.index_select(-2, some))
            for moments in (centre(split.fitted), centre(split.judged))
        )
        held = prior.index_select(-2, some)
        ridge = best_ridge(lambda ridge: fit(held, fitted, ridge), judged.cross, judged.second)
    moments = centre(split.pooled())
    return fit(prior, moments, ridge), moments


def _some_rows(matrix: Tensor) -> Tensor:
    """Places of rows that are spread evenly, and no row of a kernel is left out."""
    rows = matrix.shape[-2]
    return torch.linspace(0, rows - 1, min(rows, _CHOOSING), device=matrix.device).round().long()


@torch.no_grad()
def nearest_map(matrix: Tensor, moments: PairMoments, ridge: float) -> Tensor:
    """A = (E[y z^T] + ridge M) (E[z z^T] + ridge I)^-1: nearest to y, what M gives, as seen from z.

    Args:
        matrix: M (..., m, n), float64.
        moments: of y and z.
        ridge: relative; white noise of so much, which M is right on, so that without data the map is M itself.

    Returns:
        (..., m, n).
    """
    if math.isinf(ridge):
        return matrix
    second = moments.ridged(ridge)
    added = second[..., :1, :1] - moments.second[..., :1, :1]  # to every value of the diagonal
    return torch.cholesky_solve((moments.cross + added * matrix).mT, torch.linalg.cholesky(second)).mT


def best_ridge(fit: Callable[[float], Tensor], cross: Tensor, second: Tensor) -> float:
    """The one of RIDGES whose map is nearest on images that it was not fitted on; the largest of equal ones.

    The error is taken to have one valley over the ridges, and is followed down from the middle of them.

    Args:
        fit: makes the map (..., m, n) at a ridge.
        cross, second: E[y z^T] (..., m, n) and E[z z^T] (..., n, n) on those images, y being what is wanted.
    """

    @functools.cache
    def misfit(place: int) -> float:  # less E[y y^T], which is the same for all
        weight = fit(RIDGES[place])
        error = float((weight @ second * weight).sum() - 2 * (weight * cross).sum())
        return error if math.isfinite(error) else math.inf

    best = len(RIDGES) // 2
    while best > 0 and misfit(best - 1) < misfit(best):
        best -= 1
    while best + 1 < len(RIDGES) and misfit(best + 1) <= misfit(best):
        best += 1
    return RIDGES[best]
