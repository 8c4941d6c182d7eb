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

from .decomposition import Factors, true_svd
from .forms import Form, factor_shapes, rebuild
from .layers import convolve
from .moments import LARGEST_MOMENT, PairMoments, answer_moments
from .reaching import left_factor, second_layer
from .regression import Split, fit_on, nearest_map
from .shapes import LayerShape


@torch.no_grad()
def second_moments(
    factors: Factors, shape: LayerShape, form: Form, z: Tensor, wanted: Tensor, weights: Tensor | None = None
) -> PairMoments | None:
    """Moments of what a layer shall give and of what its second factor reads, behind the first one.

    Args:
        factors: float64.
        shape, form: of a convolution.
        z: (N, inputs, ...) what the layer will read.
        wanted: (N, outputs, ...) what it shall give; without the bias, unless they will be centred.
        weights: (N,) how much each image counts; all the same without.

    Returns:
        None where there is nothing to gain, as the first factor sees the whole window, or the moment would be too
        large.
    """
    first, second = factor_shapes(shape, form, factors.rank)
    if form is Form.CHANNEL or factors.rank * math.prod(second.kernel) > LARGEST_MOMENT:
        return None
    kernel = rebuild(factors.v, first, Form.CHANNEL).float()
    return answer_moments(wanted, convolve(z.float(), kernel, None, first), second, weights)


@torch.no_grad()
def refit_second(factors: Factors, shape: LayerShape, form: Form, split: Split, *, centred: bool) -> Factors:
    """Factors with the same first layer, and the second that is best on data.

    Args:
        factors: float64; a ridge, the best one for the images that judge, holds the second of them to what it is.
        shape, form: of a convolution.
        split: `second_moments` of images to fit on, and of some that judge.
        centred: whether a bias, or a norm behind, takes up the mean.

    Returns:
        A true SVD in float64.
    """
    before = second_layer(factors.u * factors.s.unsqueeze(-2), shape, form)
    after, _ = fit_on(split, before, nearest_map, centred=centred)
    return true_svd(left_factor(after, shape, form, factors.rank), factors.v)
