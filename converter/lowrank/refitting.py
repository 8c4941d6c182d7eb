"""The second factor of a convolution, fitted again to the layer's whole output.

Forms that split the window see a part of it at a time: `spatial` cuts each kernel column as if what the columns give
could not cancel, and an edge detector is nothing else. With the first factor held, the second that comes nearest to
the layer's real output is a least-squares problem of its own.

Source: one half of an alternating least-squares sweep, as in Jaderberg et al. (2014), "filter reconstruction", on
data.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .decomposition import Factors, regularised, solve_positive, true_svd
from .forms import Form, factor_shapes, matricise, rebuild
from .layers import convolve
from .moments import LARGEST_MOMENT, PairMoments, answer_moments
from .reaching import tap_by_tap, through_first
from .regression import Split, fit_on
from .shapes import LayerShape

_TINY = 1e-9
"""Ridge against factors that see the same twice."""

_MOST_NOISE = 1.0
"""Beyond it the input would count as noise alone."""


@torch.no_grad()
def second_moments(factors: Factors, shape: LayerShape, form: Form, z: Tensor, wanted: Tensor) -> PairMoments | None:
    """Moments of what a layer shall give and of what its second factor reads, behind the first one.

    Args:
        factors: float64.
        shape, form: of a convolution.
        z: (N, inputs, ...) what the layer will read.
        wanted: (N, outputs, ...) what it shall give; without the bias, unless they will be centred.

    Returns:
        None where there is nothing to gain, as the first factor sees the whole window, or the moment would be too
        large.
    """
    first, second = factor_shapes(shape, form, factors.rank)
    if form is Form.CHANNEL or factors.rank * math.prod(second.kernel) > LARGEST_MOMENT:
        return None
    kernel = rebuild(factors.v, first, Form.CHANNEL).float()
    return answer_moments(wanted, convolve(z.float(), kernel, None, first), second)


@torch.no_grad()
def refit_second(
    factors: Factors,
    weight: Tensor,
    shape: LayerShape,
    form: Form,
    split: Split,
    power: float,
    *,
    centred: bool,
) -> Factors:
    """Factors with the same first layer, and the second that is best on data.

    Args:
        factors: float64.
        weight: the dense layer's, of `shape.weight`.
        shape, form: of a convolution.
        split: `second_moments` of images to fit on, and of some that judge.
        power: of the input. White noise of a part of it is added, on which the dense weight is right: what keeps the
            fit from following few samples. That part is the best one for the images that judge.
        centred: whether a bias, or a norm behind, takes up the mean.

    Returns:
        A true SVD in float64.
    """
    _, second = factor_shapes(shape, form, factors.rank)
    v = factors.v.double().reshape(shape.groups, factors.rank, -1)
    whole = matricise(weight.double(), shape, Form.CHANNEL).reshape(shape.groups, shape.outputs // shape.groups, -1)
    taps = math.prod(second.kernel)
    noise_inner, noise_cross = (v @ v.mT).unsqueeze(-1), through_first(tap_by_tap(whole, shape, form), v)

    def solved(prior: Tensor, moments: PairMoments, ridge: float) -> Tensor:
        noise = power * min(ridge, _MOST_NOISE)
        inner = moments.second.reshape(shape.groups, *(factors.rank, taps) * 2).clone()
        inner.diagonal(dim1=2, dim2=4).add_(noise * noise_inner)  # white noise is not the same at any two taps
        inner = inner.flatten(3).flatten(1, 2)
        after = solve_positive(regularised(inner, _TINY), (moments.cross + noise * prior).mT)
        return after.mT

    after, _ = fit_on(split, noise_cross, solved, centred=centred)
    outer = rebuild(after, second, Form.CHANNEL)
    return true_svd(matricise(outer, second, Form.POINTWISE), factors.v)
