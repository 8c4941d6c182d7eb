"""Second moments of what a layer's first factor sees.

A convolution reads each patch of its input as one vector x; C = E[x x^T] over patches and images is the metric in
which its weight matters. A few images at a time are summed, so memory is bounded by one chunk: by shifts of the map
where a kernel has no stride (`shifts`), of gathered patches elsewhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ModelError
from .decomposition import regularised
from .forms import Form, factor_shapes
from .layers import padded
from .shapes import LayerShape
from .shifts import Axis, WindowProducts

_CHUNK_BYTES = 64 * 2**20

_ROUNDING = 1e-12
"""Of float64 moments about zero, in what is left of them about the mean."""

_TINY = 1e-15
"""Samples whose products float32 cannot hold."""

LARGEST_MOMENT = 6144
"""Columns of the largest moment made: a float64 matrix of 300 MB. Larger layers are cut without data."""


Summed = tuple[Tensor, int]
"""An input summed over its images, and how many these are."""


class PairMoments(NamedTuple):
    """Moments of x, a layer's inputs in one network, and z, those in another; all float64, with an axis of groups.

    Attributes:
        cross: E[x z^T] (..., m, n).
        second: E[z z^T] (..., n, n).
        mean_x, mean_z: (..., m) and (..., n).
    """

    cross: Tensor
    second: Tensor
    mean_x: Tensor
    mean_z: Tensor

    def centred(self) -> PairMoments:
        """Covariances: what counts where a bias, or the norm behind the layer, takes up its mean."""
        rows = self.mean_z.unsqueeze(-2)
        return self._replace(
            cross=torch.addcmul(self.cross, self.mean_x.unsqueeze(-1), rows, value=-1),
            second=torch.addcmul(self.second, self.mean_z.unsqueeze(-1), rows, value=-1),
        )

    def pooled(self, other: PairMoments, part: float) -> PairMoments:
        """Moments over the samples of both.

        Args:
            other: of further samples.
            part: of all samples that are the other's, 0..1.
        """
        return PairMoments(*(mine.lerp(theirs, part) for mine, theirs in zip(self, other, strict=True)))

    def ridged(self, ridge: float) -> Tensor:
        """The second moment made positive definite: `regularised`, and by what rounding left of the mean."""
        size = (self.second.diagonal(dim1=-2, dim2=-1) + self.mean_z.square()).mean(-1, keepdim=True)
        ridged = regularised(self.second, ridge)
        ridged.diagonal(dim1=-2, dim2=-1).add_(_ROUNDING * size)
        return ridged


@torch.no_grad()
def pair_moments(x: Tensor, z: Tensor, shape: LayerShape, form: Form) -> PairMoments:
    """Moments of the patches that the first factor sees.

    Args:
        x, z: (N, inputs, ...), or (..., inputs) for a linear layer; the same tensor when there is one network.
        shape, form: the layer and its form; n is the number of columns of its matrix.

    Raises:
        ModelError: the moments are not finite.

    Returns:
        Means over all patches; the leading axis counts groups, and is absent for one group.
    """
    first, _ = factor_shapes(shape, form, 1)
    with torch.autocast(z.device.type, enabled=False):
        if _side_by_side(first):
            found = _moments_of_windows(x, z, first)
        elif x is z:
            found = moments_of((part, part) for part in patches(z, first))
        else:
            found = moments_of(zip(patches(x, first), patches(z, first), strict=True))
    if not bool(found.second.diagonal(dim1=-2, dim2=-1).isfinite().all()):  # no other value is larger
        raise ModelError(
            f"its inputs are not finite, or too large to square (largest {float(z.abs().max()):.3g}); scale the "
            "images as the network was trained on them"
        )
    return PairMoments(*(part.squeeze(0) for part in found)) if shape.groups == 1 else found


def moments_of(parts: Iterable[tuple[Tensor, Tensor]]) -> PairMoments:
    """Moments of samples that come some at a time.

    Args:
        parts: x (groups, m, samples) and z (groups, n, samples), one at least; one tensor twice where they are the
            same.

    Returns:
        Means over all samples. Products are taken in the samples' type about the mean of the first part, so that
        little is rounded off where the mean is large; all else in float64, and products of tiny samples.
    """
    sums: list[Tensor] = []
    about_x = about_z = torch.zeros(())
    count, tiny = 0, False
    for x, z in parts:
        same = x is z
        if not sums:
            tiny = _is_tiny(z)
        if tiny:
            z = z.double()
            x = z if same else x.double()
        if not sums:
            about_z = z.mean(-1, keepdim=True)
            about_x = about_z if same else x.mean(-1, keepdim=True)
        z = z - about_z
        found = [z @ z.mT, z.sum(-1)]
        if not same:
            x = x - about_x
            found += [x @ z.mT, x.sum(-1)]
        sums = _added(sums, found)
        count += z.shape[-1]
    return _about_zero(sums, count, about_x.squeeze(-1), about_z.squeeze(-1))


def _moments_of_windows(x: Tensor, z: Tensor, layer: LayerShape) -> PairMoments:
    """As `moments_of` of `patches`, by shifts of the maps (N, inputs, ...), for a convolution without a stride."""
    same, taps = x is z, math.prod(layer.kernel)
    if z.dim() == 1 + len(layer.kernel):  # one image without a batch
        z, x = z.unsqueeze(0), x.unsqueeze(0)
    axes = [Axis(*axis) for axis in zip(layer.kernel, layer.dilation, strict=True)]
    windows = replace(layer, padding=((0, 0),) * len(axes))
    kind = torch.float64 if _is_tiny(z) else torch.float32
    about_x, about_z = (_channel_means(part, kind) for part in (x, z))
    products = [WindowProducts(axes, same=True)] + [WindowProducts(axes, same=False)] * (not same)
    totals: list[Tensor] = []
    count, images = 0, max(1, _CHUNK_BYTES // (4 * max(1, z[:1].numel())))
    for some_x, some_z in zip(torch.split(x, images), torch.split(z, images), strict=True):
        p = padded(some_z.to(kind), layer) - about_z
        maps = [p] if same else [p, padded(some_x.to(kind), layer) - about_x]
        for summing, one in zip(products, maps, strict=True):
            summing.add(one, p)
        totals = _added(totals, [_over_images(one) for one in maps])
        places = [size - axis.dilation * (axis.taps - 1) for size, axis in zip(p.shape[2:], axes, strict=True)]
        count += len(p) * math.prod(places)
    columns = layer.inputs * taps
    sums: list[Tensor] = []
    for summing, total in zip(products, totals, strict=True):
        sums += [summing.take().reshape(1, columns, columns), _unfold(total.unsqueeze(0), windows).sum(-1)]
    far_x, far_z = (part.flatten().repeat_interleave(taps).unsqueeze(0) for part in (about_x, about_z))
    return _about_zero(sums, count, far_x, far_z)


def _side_by_side(layer: LayerShape) -> bool:
    """Whether windows overlap at every place, so that shifts serve all of them."""
    plain = not layer.linear and not layer.transposed and layer.groups == 1
    return plain and math.prod(layer.kernel) > 1 and all(stride == 1 for stride in layer.stride)


def _is_tiny(samples: Tensor) -> bool:
    return float(samples.abs().amax()) < _TINY if samples.numel() else False


def _channel_means(maps: Tensor, kind: torch.dtype) -> Tensor:
    """(channels, 1, ...) of the first image: a point near to the mean is enough."""
    means = maps[:1].to(kind).flatten(2).mean((0, -1))
    return means.reshape(-1, *[1] * (maps.dim() - 2))


def _added(sums: list[Tensor], found: list[Tensor]) -> list[Tensor]:
    """Sums of before and these, in float64."""
    if not sums:
        return [part.double() for part in found]
    for total, part in zip(sums, found, strict=True):
        total.add_(part)  # in place: a matrix of 4,608 columns has 170 MB
    return sums


def _about_zero(sums: list[Tensor], count: int, about_x: Tensor, about_z: Tensor) -> PairMoments:
    """Moments about zero, of sums of (z - b)(z - b)^T and z - b, and of (x - a)(z - b)^T and x - a where x is not z.

    Args:
        sums: float64, changed in place; (groups, n, n) and (groups, n), and (groups, m, n) and (groups, m).
        count: samples in them.
        about_x, about_z: a (groups, m) and b (groups, n).
    """
    second, off_z, *of_pairs = (total.div_(max(1, count)) for total in sums)
    far_z = about_z.double()
    mean_z = far_z + off_z

    def moved(product: Tensor, far: Tensor, off: Tensor) -> Tensor:
        # E[x z^T] = E[(x - a)(z - b)^T] + E[x - a] b^T + a E[z]^T
        product.addcmul_(off.unsqueeze(-1), far_z.unsqueeze(-2))
        return product.addcmul_(far.unsqueeze(-1), mean_z.unsqueeze(-2))

    second = moved(second, far_z, off_z)
    if not of_pairs:
        return PairMoments(second, second, mean_z, mean_z)
    (cross, off_x), far_x = of_pairs, about_x.double()
    return PairMoments(moved(cross, far_x, off_x), second, far_x + off_x, mean_z)


def mean_patch(inputs: Sequence[Summed], layer: LayerShape) -> Tensor:
    """The mean over all patches of what a layer multiplies with its weight.

    Args:
        inputs: parts of its input, each summed over its images as `summed` does, and how many these are.
        layer: its geometry.

    Returns:
        (groups, n) float64, in the order of the form `channel`. A patch is linear in the input, so that those of the
        sum of all images are what has to be gathered.
    """
    total = torch.stack([part for part, _ in inputs]).double().sum(0, keepdim=True)
    mean = (total / sum(images for _, images in inputs)).float()
    gathered = list(patches(mean, layer))
    return torch.cat(gathered, -1).double().mean(-1)


def summed(x: Tensor, layer: LayerShape) -> Summed:
    """Sums an input over its images, or over the rows of a linear layer's."""
    if layer.linear:
        x = x.reshape(-1, x.shape[-1])
        return x.float().sum(0), len(x)
    return _over_images(x.float()), len(x)


def _over_images(maps: Tensor) -> Tensor:
    """Their sum; channels last, it is many times faster along memory as it lies."""
    return maps.sum(0) if maps.is_contiguous() else maps.movedim(1, -1).sum(0).movedim(-1, 0)


def patches(x: Tensor, layer: LayerShape) -> Iterator[Tensor]:
    """What a layer multiplies with its weight, some images at a time.

    Args:
        x: (N, inputs, ...), or (..., inputs) for a linear layer.

    Yields:
        (groups, n, samples), n = inputs / groups * prod(kernel) in the order of the form `channel`.
    """
    if layer.linear:
        rows = x.reshape(-1, x.shape[-1])
        for part in torch.split(rows, max(1, _CHUNK_BYTES // (4 * x.shape[-1]))):
            yield part.float().mT.unsqueeze(0)
        return
    if x.dim() == 1 + len(layer.kernel):  # one image without a batch
        x = x.unsqueeze(0)
    spread = math.prod(layer.kernel) * (math.prod(layer.stride) if layer.transposed else 1)
    images = max(1, _CHUNK_BYTES // (4 * spread * max(1, x[:1].numel())))
    for part in torch.split(x, images):
        yield _unfold(part.float(), layer)


def _unfold(x: Tensor, layer: LayerShape) -> Tensor:
    """im2col by copying shifted views: many times faster on a CPU than F.unfold."""
    if layer.transposed:
        x, stride = _stretched(x, layer), (1,) * len(layer.stride)
    else:
        x, stride = padded(x, layer), layer.stride
    x = x.transpose(0, 1)  # channels first, so that each row of the result is written in long runs
    axes = list(zip(layer.kernel, layer.dilation, stride, strict=True))
    sizes = [(size - d * (k - 1) - 1) // s + 1 for size, (k, d, s) in zip(x.shape[2:], axes, strict=True)]
    columns = x.new_empty(x.shape[0], *layer.kernel, x.shape[1], *sizes)
    for tap in itertools.product(*map(range, layer.kernel)):
        starts = [i * d for i, (_, d, _) in zip(tap, axes, strict=True)]
        ends = [i + (size - 1) * s + 1 for i, size, s in zip(starts, sizes, stride, strict=True)]
        window: Any = (..., *map(slice, starts, ends, stride))
        place = [k - 1 - i for i, k in zip(tap, layer.kernel, strict=True)] if layer.transposed else tap
        there: Any = (slice(None), *place)
        columns[there] = x[window]
    return columns.view(layer.groups, x.shape[0] // layer.groups * math.prod(layer.kernel), -1)


def _stretched(x: Tensor, layer: LayerShape) -> Tensor:
    """Of a transposed convolution, the map on which it is a plain one, unstrided, of the kernel turned round."""
    sizes = [(size - 1) * s + 1 for size, s in zip(x.shape[2:], layer.stride, strict=True)]
    stretched = x.new_zeros(*x.shape[:2], *sizes)
    every: Any = (..., *(slice(None, None, s) for s in layer.stride))
    stretched[every] = x
    more = layer.output_padding or (0,) * len(sizes)
    reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel, strict=True)]
    padding = tuple(
        (far - before, far - after + extra)
        for far, (before, after), extra in zip(reach, layer.padding, more, strict=True)
    )
    return padded(stretched, replace(layer, padding=padding))
