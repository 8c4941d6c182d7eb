"""Both factors of a convolution in turn, each fitted to the layer's whole output with the other held.

The closed form cuts a matrix that sees a part of the window at a time. From there, alternating least squares go on
downhill in the layer's true error, tr(G (W - W') C (W - W')^T) with C the second moment of whole windows and G what
the answers feel of the output. W' is linear in either factor: in the second one it is solved outright, in the first
one by conjugate gradients.

Source: Jaderberg et al. (2014), "filter reconstruction", on data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .decomposition import Factors, regularised, true_svd
from .forms import Form, factor_shapes, matricise, matrix_size, rebuild
from .moments import PairMoments
from .reaching import in_windows, left_factor, onto_windows, second_layer, tap_by_tap, through_first
from .regression import Split
from .shapes import LayerShape

_LARGEST = 1152
"""Values of the largest window: beyond it sweeps take longer than all else."""

_SWEEPS, _STEPS = 3, 4
"""Sweeps, and steps of conjugate gradients in each, from the factor that is there already."""

_NOISE = 1e-2
"""Power of white noise in the input, on which the dense weight is right, relative to the input's."""

_TINY = 1e-9
"""Ridge against factors that see the same twice."""


def sweepable(shape: LayerShape, form: Form) -> bool:
    """Whether there is something to gain: the first factor sees a part of windows that are not too large."""
    return not shape.linear and form is not Form.CHANNEL and matrix_size(shape, Form.CHANNEL)[1] <= _LARGEST


@torch.no_grad()
def swept(
    factors: Factors,
    weight: Tensor,
    shape: LayerShape,
    form: Form,
    split: Split,
    *,
    centred: bool,
    metric: Tensor | None = None,
) -> Factors:
    """Factors after a few sweeps; those that came in where these are no worse on images that judge, or none does.

    Args:
        factors: float64.
        weight: the dense layer's, of `shape.weight`.
        shape, form: of a convolution, in any form but `channel`.
        split: moments of whole windows and of what the layer shall give, of images to fit on and of some that judge.
        centred: whether a bias, or a norm behind, takes up the mean.
        metric: of the outputs, as `OutputMetrics` has it; without one every output counts the same.

    Returns:
        A true SVD in float64.
    """

    def centre(moments: PairMoments) -> PairMoments:
        return moments.centred() if centred else moments

    if split.judged is None:
        return factors
    sweeper = Sweeper(weight, shape, form, metric)
    start = factors.v.reshape(shape.groups, factors.rank, -1)
    begun = onto_windows(second_layer(factors.u * factors.s.unsqueeze(-2), shape, form), start)
    target, judge = sweeper.target(centre(split.fitted), _NOISE), sweeper.target(centre(split.judged), 0.0)
    others = (begun, sweeper.made(start, target))
    after = sweeper.made(sweeper.swept(start, target), target)
    if not sweeper.error(after, judge) < min(sweeper.error(other, judge) for other in others):
        return factors
    target = sweeper.target(centre(split.pooled()), _NOISE)
    v = sweeper.swept(start, target)
    return true_svd(left_factor(sweeper.second(v, target), shape, form, factors.rank), v.reshape(factors.v.shape))


@torch.no_grad()
def swept_weights(
    v: Tensor,
    ranks: Sequence[int],
    weight: Tensor,
    shape: LayerShape,
    form: Form,
    target: Target,
    metric: Tensor | None = None,
) -> list[Tensor]:
    """The weights of some ranks that one sweep ends at; of a window too large for it, see `refitted_weights`.

    Args:
        v: (r, columns), or (groups, r, columns): first factors to begin with, the most important first.
        ranks: at most r.
        weight: of `shape.weight`, the dense layer's.
        shape, form: of a convolution, in any form but `channel`.
        target: `Target.of_layer`, of a positive definite second moment.
        metric: as for `swept`.

    Returns:
        Of `shape.weight`, float64.
    """
    if not sweepable(shape, form):
        return refitted_weights(v, ranks, weight, shape, form, target)
    sweeper = Sweeper(weight, shape, form, metric)
    target = sweeper.tap_by_tap(target)
    whole = v.double().reshape(shape.groups, -1, v.shape[-1])
    firsts = [sweeper.swept(whole[:, :rank], target, sweeps=1) for rank in ranks]
    return [rebuild(sweeper.whole(sweeper.made(first, target)), shape, Form.CHANNEL) for first in firsts]


@torch.no_grad()
def refitted_weights(
    v: Tensor, ranks: Sequence[int], weight: Tensor, shape: LayerShape, form: Form, target: Target
) -> list[Tensor]:
    """The weights nearest to a layer's own, in closed form, whose first factors are given; see `swept_weights`.

    What `refit_second` finds on the data that the target is of.
    """
    sweeper = Sweeper(weight, shape, form, None)
    first = v.double().reshape(shape.groups, -1, v.shape[-1])
    made = sweeper.made_of(first, sweeper.tap_by_tap(target), ranks)
    return [rebuild(sweeper.whole(one), shape, Form.CHANNEL) for one in made]


@torch.no_grad()
def held_weights(
    pair: tuple[Tensor, Tensor],
    ranks: Sequence[int],
    weight: Tensor,
    shape: LayerShape,
    form: Form,
    target: Target,
    ridge: float,
) -> list[Tensor]:
    """The weights of some ranks whose second factors a ridge holds to what they are, as in `refit_second`.

    Args:
        pair: `best_pair`, of at least those ranks.
        weight, shape, form, target: as for `swept_weights`.
        ridge: relative to the mean of what the second factors read.
    """
    left, right = (part.double().reshape(shape.groups, *part.shape[-2:]) for part in pair)
    basis, mixed = torch.linalg.qr(right.mT)  # whose first columns span what the first rows do
    held = [second_layer(left[..., :rank] @ mixed[:, :rank, :rank].mT, shape, form) for rank in ranks]
    sweeper = Sweeper(weight, shape, form, None)
    made = sweeper.made_of(basis.mT, sweeper.tap_by_tap(target), ranks, held, ridge)
    return [rebuild(sweeper.whole(one), shape, Form.CHANNEL) for one in made]


class Target(NamedTuple):
    """What a weight on whole windows z is fitted to, y being the dense layer's output.

    Attributes:
        second: E[z z^T] (groups, columns, columns).
        cross: E[y z^T] (groups, outputs / groups, columns).
    """

    second: Tensor
    cross: Tensor

    @classmethod
    def of_layer(cls, weight: Tensor, shape: LayerShape, moment: Tensor) -> Target:
        """Of a second moment of whole windows, the input being the same in both networks."""
        second = moment.reshape(shape.groups, *moment.shape[-2:])
        return cls(second, _windows_matrix(weight, shape) @ second)


class Sweeper:
    """Least squares for the factors of one layer in one form.

    Factors and weights are (groups, rows, columns); columns of windows go tap by tap.
    """

    def __init__(self, weight: Tensor, shape: LayerShape, form: Form, metric: Tensor | None) -> None:
        self._matrix = _windows_matrix(weight, shape)
        self._shape, self._form = shape, form
        self._taps = math.prod(factor_shapes(shape, form, 1)[1].kernel)
        self._metric = metric

    def target(self, moments: PairMoments, noise: float) -> Target:
        """Of moments of whole windows and of what the layer shall give, with noise in both networks' inputs."""
        groups = len(self._matrix)
        second, cross = (part.reshape(groups, *part.shape[-2:]) for part in (moments.second, moments.cross))
        amount = noise * second.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
        target = self.tap_by_tap(Target(second, cross + amount.unsqueeze(-1) * self._matrix))
        target.second.diagonal(dim1=-2, dim2=-1).add_(amount)
        return target

    def whole(self, weight: Tensor) -> Tensor:
        """A weight in the order of whole windows."""
        return in_windows(weight, self._shape, self._form)

    def tap_by_tap(self, target: Target) -> Target:
        """A target in the order of whole windows, in this one's."""
        shape, form = self._shape, self._form
        return Target(tap_by_tap(target.second, shape, form, 2), tap_by_tap(target.cross, shape, form))

    def swept(self, v: Tensor, target: Target, sweeps: int = _SWEEPS) -> Tensor:
        """The first factor after a few sweeps."""
        for _ in range(sweeps):
            v = self._first(self.second(v, target), v, target)
        return v

    def second(self, v: Tensor, target: Target) -> Tensor:
        """The best second factor for a first one."""
        return self._seconds(v, target, [v.shape[1]])[0]

    def made(self, v: Tensor, target: Target) -> Tensor:
        """The weight of a first factor with its best second one."""
        return self.made_of(v, target, [v.shape[1]])[0]

    def made_of(
        self, v: Tensor, target: Target, ranks: Sequence[int], held: Sequence[Tensor] = (), ridge: float = _TINY
    ) -> list[Tensor]:
        """The same of the first so many rows of a first factor; with a ridge, held to second ones that are there."""
        seconds = self._seconds(v, target, ranks, held, ridge)
        return [onto_windows(second, v[:, :rank]) for second, rank in zip(seconds, ranks, strict=True)]

    def _seconds(
        self, v: Tensor, target: Target, ranks: Sequence[int], held: Sequence[Tensor] = (), ridge: float = _TINY
    ) -> list[Tensor]:
        """The best second factors for the first rows of a first one, or those that a ridge holds to given ones."""
        inner, aim = self._equations(v, target)
        whole, sizes = regularised(inner, ridge), [rank * self._taps for rank in ranks]
        aims = [aim[:, :size] for size in sizes]  # lower ranks: the first rows
        if held:
            added = whole[:, :1, :1] - inner[:, :1, :1]
            aims = [part + added * before.mT for part, before in zip(aims, held, strict=True)]
        lower, failed = torch.linalg.cholesky_ex(whole)
        by_rounding = bool(failed.any())
        solved = []
        for size, part in zip(sizes, aims, strict=True):
            if by_rounding:
                solved.append(torch.linalg.solve(whole[:, :size, :size], part).mT)
            else:
                solved.append(torch.cholesky_solve(part, lower[:, :size, :size]).mT)
        return solved

    def _equations(self, v: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """E[t t^T] (groups, r taps, r taps) and E[t y^T] (groups, r taps, m), t being what it reads."""
        (groups, most, columns), taps = v.shape, self._taps
        inner = v.new_empty(groups, most, taps, most, taps)
        for tap in range(taps):  # with itself and those behind it: the others are their mirror images
            seen = v @ target.second[:, tap * columns : (tap + 1) * columns, tap * columns :]
            felt = (seen.reshape(groups, -1, columns) @ v.mT).reshape(groups, most, taps - tap, most)
            inner[:, :, tap, :, tap:] = felt.transpose(2, 3)
            inner[:, :, tap:, :, tap] = felt.transpose(1, 3)
        return inner.reshape(groups, most * taps, -1), through_first(target.cross, v).mT

    def error(self, made: Tensor, judge: Target) -> float:
        """Of a weight on a target, less what is the same for all."""
        return float((self._felt(made @ judge.second - 2 * judge.cross) * made).sum())

    def _first(self, u: Tensor, v: Tensor, target: Target) -> Tensor:
        """A better first factor for a second one, by preconditioned conjugate gradients."""
        groups, ranks, columns = v.shape
        taps = self._taps
        felt = u.mT @ self._felt(u)
        mixed = felt.reshape(groups, ranks, taps, ranks, taps).permute(0, 1, 2, 4, 3)
        blocks = self._blocks(target)

        def bent(direction: Tensor) -> Tensor:
            seen = direction[:, None] @ blocks.flatten(3)
            seen = seen.reshape(groups, taps, ranks, taps, columns).permute(0, 3, 1, 2, 4)
            return mixed.flatten(2) @ seen.reshape(groups, -1, columns)

        # As if no two taps saw the same, which is nearly so where pixels differ.
        own, under = mixed.diagonal(dim1=2, dim2=3).sum(-1), blocks.diagonal(dim1=1, dim2=3).sum(-1)
        left, right = (torch.linalg.cholesky(regularised(part, _TINY)) for part in (own, under))

        def scaled(slope: Tensor) -> Tensor:
            return torch.cholesky_solve(torch.cholesky_solve(slope, left).mT, right).mT

        pulled = (u.mT @ self._felt(target.cross)).reshape(groups, ranks, taps, taps, columns)
        residual = pulled.diagonal(dim1=2, dim2=3).sum(-1) - bent(v)
        direction = scaled(residual)
        size = (residual * direction).sum()
        for _ in range(_STEPS):
            curved = bent(direction)
            curvature = (direction * curved).sum()
            if not curvature > 0:
                break
            v = v + size / curvature * direction
            residual = residual - size / curvature * curved
            better = scaled(residual)
            size, before = (residual * better).sum(), size
            direction = better + size / before * direction
        return v

    def _blocks(self, target: Target) -> Tensor:
        """What taps see of each other, (groups, taps, columns, taps, columns)."""
        groups, columns = target.second.shape[:2]
        return target.second.reshape(groups, *(self._taps, columns // self._taps) * 2)

    def _felt(self, output: Tensor) -> Tensor:
        return output if self._metric is None else self._metric.to(output) @ output


def _windows_matrix(weight: Tensor, shape: LayerShape) -> Tensor:
    """(groups, outputs / groups, columns) float64, for whole windows."""
    matrix = matricise(weight.double(), shape, Form.CHANNEL)
    return matrix.reshape(shape.groups, *matrix.shape[-2:])
