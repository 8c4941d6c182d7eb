"""Second moments of what a layer's first factor sees.

A convolution reads each patch of its input as one vector x; C = E[x x^T] over patches and images is the metric in
which its weight matters. Patches are gathered for a few images at a time, so memory is bounded by one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ModelError
from .forms import Form, factor_shapes
from .shapes import LayerShape

_CHUNK_BYTES = 64 * 2**20

LARGEST_MOMENT = 6144
"""Columns of the largest moment made: a float64 matrix of 300 MB. Larger layers are cut without data."""


class PairMoments(NamedTuple):
    """Moments of a layer's inputs in two networks: x in the dense one, z in the converted one.

    Attributes:
        cross: E[x z^T] (..., n, n), float64; the leading axis counts groups, and is absent for one group.
        second: E[z z^T] (..., n, n), float64.
    """

    cross: Tensor
    second: Tensor


@torch.no_grad()
def pair_moments(x: Tensor, z: Tensor, shape: LayerShape, form: Form) -> PairMoments:
    """Moments of the patches that the first factor sees.

    Args:
        x, z: (N, inputs, H, W), or (..., inputs) for a linear layer; the same tensor when there is one network.
        shape, form: the layer and its form; n is the number of columns of its matrix.

    Raises:
        ModelError: the moments are not finite.

    Returns:
        Means over all patches. Products are taken in the inputs' type, sums over chunks in float64.
    """
    first, _ = factor_shapes(shape, form, 1)
    same = x is z
    cross = second = torch.zeros((), dtype=torch.float64, device=z.device)
    count = 0
    others = patches(z, first)
    with torch.autocast(z.device.type, enabled=False):
        for ours in patches(x, first):
            theirs = ours if same else next(others)
            second = second + (theirs @ theirs.mT).double()
            cross = second if same else cross + (ours @ theirs.mT).double()
            count += ours.shape[-1]
    if not bool(second.isfinite().all()):
        raise ModelError(
            f"its inputs are not finite, or too large to square (largest {float(z.abs().max()):.3g}); scale the "
            "images as the network was trained on them"
        )
    if shape.groups == 1:
        cross, second = cross.squeeze(0), second.squeeze(0)
    return PairMoments(cross / max(1, count), second / max(1, count))


def patches(x: Tensor, layer: LayerShape) -> Iterator[Tensor]:
    """What a layer multiplies with its weight, some images at a time.

    Args:
        x: (N, inputs, H, W), or (..., inputs) for a linear layer.

    Yields:
        (groups, n, samples), n = inputs / groups * k_h * k_w in the weight's order.
    """
    if layer.kind == "linear":
        rows = x.reshape(-1, x.shape[-1])
        for part in torch.split(rows, max(1, _CHUNK_BYTES // (4 * x.shape[-1]))):
            yield part.float().mT.unsqueeze(0)
        return
    if x.dim() == 3:  # one image without a batch
        x = x.unsqueeze(0)
    k_h, k_w = layer.kernel
    images = max(1, _CHUNK_BYTES // (4 * k_h * k_w * max(1, x[:1].numel())))
    for part in torch.split(x, images):
        yield _unfold(part.float(), layer)


def _unfold(x: Tensor, layer: LayerShape) -> Tensor:
    """im2col by copying shifted views: many times faster on a CPU than F.unfold."""
    pad = layer.padding
    if any(pad):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, (pad.left, pad.right, pad.top, pad.bottom), mode=mode)
    x = x.transpose(0, 1)  # channels first, so that each row of the result is written in long runs
    (k_h, k_w), (s_h, s_w), (d_h, d_w) = layer.kernel, layer.stride, layer.dilation
    height = (x.shape[2] - d_h * (k_h - 1) - 1) // s_h + 1
    width = (x.shape[3] - d_w * (k_w - 1) - 1) // s_w + 1
    columns = x.new_empty(x.shape[0], k_h, k_w, x.shape[1], height, width)
    for i in range(k_h):
        for j in range(k_w):
            rows = slice(i * d_h, i * d_h + (height - 1) * s_h + 1, s_h)
            across = slice(j * d_w, j * d_w + (width - 1) * s_w + 1, s_w)
            columns[:, i, j] = x[:, :, rows, across]
    return columns.view(layer.groups, x.shape[0] // layer.groups * k_h * k_w, -1)
