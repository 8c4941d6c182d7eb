"""The second factor of a convolution, fitted again to the layer's whole output.

Forms that split the window see a part of it at a time: `spatial` cuts each kernel column as if what the columns give
could not cancel, and an edge detector is nothing else. With the first factor held, the second that comes nearest to
the layer's real output is a least-squares problem of its own.

Source: one half of an alternating least-squares sweep, as in Jaderberg et al. (2014), "filter reconstruction", on
data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .decomposition import Factors, regularised, true_svd
from .forms import Form, factor_shapes, factor_weights
from .layers import convolve
from .moments import LARGEST_MOMENT, patches
from .shapes import LayerShape

_CHUNK_BYTES = 64 * 2**20


@torch.no_grad()
def refit_second(factors: Factors, shape: LayerShape, form: Form, z: Tensor, wanted: Tensor, ridge: float) -> Factors:
    """Factors with the same first layer, and the second that is best on data.

    Args:
        factors: float64.
        shape, form: of a convolution. Where its first factor sees the whole window (`channel`) there is nothing to
            gain.
        z: (N, inputs, H, W) what the layer will read.
        wanted: (N, outputs, H', W') what it shall give, without the bias.
        ridge: pull towards the factors that came in, relative to the mean of the moment's diagonal.

    Returns:
        A true SVD in float64; the factors that came in where the moment would be too large.
    """
    first, second = factor_shapes(shape, form, factors.rank)
    columns = factors.rank * second.kernel[0] * second.kernel[1]
    if form is Form.CHANNEL or columns > LARGEST_MOMENT:
        return factors
    inner, outer = factor_weights(factors.u * factors.s.unsqueeze(-2), factors.v, shape, form)
    before = outer.reshape(shape.groups, -1, columns)
    moment = torch.zeros(shape.groups, columns, columns, dtype=torch.float64, device=z.device)
    cross = torch.zeros_like(before)
    samples = 0
    kernel = inner.float()
    images = max(1, _CHUNK_BYTES // (4 * max(1, wanted[:1].numel())))
    for given, answer in zip(torch.split(z, images), torch.split(wanted, images), strict=True):
        wide = answer.float().transpose(0, 1).reshape(shape.groups, shape.outputs // shape.groups, -1)
        start = 0
        for part in patches(convolve(given.float(), kernel, None, first), second):
            ours = wide[..., start : start + part.shape[-1]]
            moment += (part @ part.mT).double()
            cross += (ours @ part.mT).double()
            start += part.shape[-1]
        samples += start
    moment, cross = moment / max(1, samples), cross / max(1, samples)
    whole = regularised(moment, ridge)
    cross = cross + before @ (whole - moment)
    after = torch.cholesky_solve(cross.mT, torch.linalg.cholesky(whole)).mT
    rows = after.reshape(outer.shape).permute(0, 2, 3, 1).reshape(factors.u.shape)  # back from `factor_weights`
    return true_svd(rows, factors.v)
