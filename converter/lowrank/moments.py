"""Second moments of what a layer's first factor sees.

A convolution reads each patch of its input as one vector x; C = E[x x^T] over patches and images is the metric in
which its weight matters. A few images at a time are summed, so memory is bounded by one chunk: by shifts of the map
where a kernel has no stride (`shifts`), of gathered patches elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ModelError
from .decomposition import regularised
from .forms import Form, factor_shapes
from .layers import padded
from .patches import CHUNK_BYTES, answered_patches, over_images, patches, unfolded
from .shapes import LayerShape
from .shifts import Axis, TapProducts, WindowProducts, across_channels, by_channel

_ROUNDING = 1e-12
"""Of float64 moments about zero, in what is left of them about the mean."""

_TINY = 1e-15
"""Samples whose products float32 cannot hold."""

_CACHED_BYTES = 4 * 2**20
"""Of maps multiplied by channel at once: products of a few values for each one read wait for memory otherwise."""

LARGEST_MOMENT = 6144
"""Columns of the largest moment made: a float64 matrix of 300 MB. Larger layers are cut without data."""


class PairMoments(NamedTuple):
    """Moments of z, what a layer reads, and of x, what it reads in another network, or what it gives there.

    All float64, with an axis of groups.

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
        second = torch.addcmul(self.second, self.mean_z.unsqueeze(-1), rows, value=-1)
        if self.cross is self.second:  # of one network
            return self._replace(cross=second, second=second)
        return self._replace(
            cross=torch.addcmul(self.cross, self.mean_x.unsqueeze(-1), rows, value=-1), second=second
        )

    def pooled(self, other: PairMoments, part: float) -> PairMoments:
        """Moments over the samples of both.

        Args:
            other: of further samples.
            part: of all samples that are the other's, 0..1.
        """
        return PairMoments(*(mine.lerp(theirs, part) for mine, theirs in zip(self, other, strict=True)))

    def through(self, matrix: Tensor) -> PairMoments:
        """Those of M x and z, for a matrix M (..., k, m)."""
        mean = (matrix @ self.mean_x.unsqueeze(-1)).squeeze(-1)
        return self._replace(cross=matrix @ self.cross, mean_x=mean)

    def ridged(self, ridge: float) -> Tensor:
        """The second moment made positive definite: `regularised`, and by what rounding left of the mean."""
        size = (self.second.diagonal(dim1=-2, dim2=-1) + self.mean_z.square()).mean(-1, keepdim=True)
        ridged = regularised(self.second, ridge)
        ridged.diagonal(dim1=-2, dim2=-1).add_(_ROUNDING * size)
        return ridged


@torch.no_grad()
def pair_moments(x: Tensor, z: Tensor, shape: LayerShape, form: Form, weights: Tensor | None = None) -> PairMoments:
    """Moments of the patches that the first factor sees.

    Args:
        x, z: (N, inputs, ...), or (..., inputs) for a linear layer; the same tensor when there is one network.
        shape, form: the layer and its form; n is the number of columns of its matrix.
        weights: how much each image (N,) counts, or each row of a linear layer, of z's shape but for the last axis;
            all the same without.

    Raises:
        ModelError: the moments are not finite.

    Returns:
        Means over all patches; the leading axis counts groups, and is absent for one group.
    """
    first, _ = factor_shapes(shape, form, 1)
    with torch.autocast(z.device.type, enabled=False):
        if _side_by_side(first):
            found = _of_windows(x, z, first, first, weights)
        elif x is z:
            found = moments_of(((part, part) for part in patches(z, first)), _by_sample(weights, z, first))
        else:
            parts = zip(patches(x, first), patches(z, first), strict=True)
            found = moments_of(parts, _by_sample(weights, z, first))
    return _checked(found, z, shape)


@torch.no_grad()
def answer_moments(y: Tensor, z: Tensor, shape: LayerShape, weights: Tensor | None = None) -> PairMoments:
    """Moments of what a layer gives, and of the whole windows that it reads.

    Args:
        y: (N, outputs, ...), or (..., outputs) of a linear layer.
        z: (N, inputs, ...), or (..., inputs); not necessarily what y was made of.
        shape: of the layer.
        weights: as for `pair_moments`.

    Raises:
        ModelError: the moments are not finite.

    Returns:
        As `pair_moments`; m counts the outputs of a group.
    """
    with torch.autocast(z.device.type, enabled=False):
        if _side_by_side(shape):
            found = _of_windows(y, z, shape, _of_a_tap(shape), weights)
        else:
            found = moments_of(answered_patches(y, z, shape), _by_sample(weights, z, shape))
    return _checked(found, z, shape)


def _checked(found: PairMoments, z: Tensor, shape: LayerShape) -> PairMoments:
    """Without the axis of groups where there is one group."""
    if not bool(found.second.diagonal(dim1=-2, dim2=-1).isfinite().all()):  # no other value is larger
        raise ModelError(
            f"its inputs are not finite, or too large to square (largest {float(z.abs().max()):.3g}); scale the "
            "images as the network was trained on them"
        )
    return PairMoments(*(part.squeeze(0) for part in found)) if shape.groups == 1 else found


def _by_sample(weights: Tensor | None, z: Tensor, layer: LayerShape) -> Tensor | None:
    """Those of images at each of their windows, and those of rows in their order."""
    if weights is None or layer.linear:
        return None if weights is None else weights.flatten()
    return weights.repeat_interleave(next(patches(z[:1], layer)).shape[-1])


def moments_of(parts: Iterable[tuple[Tensor, Tensor]], weights: Tensor | None = None) -> PairMoments:
    """Moments of samples that come some at a time.

    Args:
        parts: x (groups, m, samples) and z (groups, n, samples), one at least; one tensor twice where they are the
            same.
        weights: how much each sample counts, (all samples,); all the same without.

    Returns:
        Means over all samples. Products are taken in the samples' type about the mean of the first part, so that
        little is rounded off where the mean is large; all else in float64, and products of tiny samples.
    """
    sums: list[Tensor] = []
    about_x = about_z = torch.zeros(())
    count, start, tiny = 0.0, 0, False
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
        counted = z
        if weights is not None:
            some = weights[start : start + z.shape[-1]].to(z.dtype)
            counted = z * some
        found = [counted @ z.mT, counted.sum(-1)]
        if not same:
            x = x - about_x
            found += [x @ counted.mT, x.sum(-1) if weights is None else (x @ some)]
        sums = _added(sums, found)
        count += z.shape[-1] if weights is None else float(some.double().sum())
        start += z.shape[-1]
    return _about_zero(sums, count, about_x.squeeze(-1), about_z.squeeze(-1))


def _of_windows(x: Tensor, z: Tensor, layer: LayerShape, reads: LayerShape, weights: Tensor | None) -> PairMoments:
    """As `moments_of` of `patches`, by shifts of the maps (N, channels, ...), of a convolution without a stride.

    Args:
        x: z itself where there is one network.
        z: what the layer reads.
        layer: whose windows those of z are.
        reads: whose windows those of x are: the layer, or one of a single tap.
        weights: (N,) of the images.
    """
    same = x is z
    if z.dim() == 1 + len(layer.kernel):  # one image without a batch
        z, x = z.unsqueeze(0), x.unsqueeze(0)
    axes = [Axis(*axis) for axis in zip(layer.kernel, layer.dilation, strict=True)]
    product, most = (by_channel, _CACHED_BYTES) if _is_depthwise(layer) else (across_channels, CHUNK_BYTES)
    kind = torch.float64 if _is_tiny(z) else torch.float32
    of_z, of_x = _Maps(z, layer, kind), _Maps(x, reads, kind)
    second = WindowProducts(axes, same=True, product=product)
    cross = WindowProducts(axes, same=False, product=product) if reads is layer else TapProducts(axes, product)
    counts = torch.ones(len(z), device=z.device) if weights is None else weights
    count, images = 0.0, max(1, min(most, CHUNK_BYTES) // (4 * max(1, z[:1].numel())))
    for some_x, some_z, some in zip(*(torch.split(every, images) for every in (x, z, counts)), strict=True):
        q = of_z.added(some_z, some)
        second.add(q, q)
        if not same:
            cross.add(of_x.added(some_x, some), q)
        places = [size - axis.dilation * (axis.taps - 1) for size, axis in zip(q.shape[2:], axes, strict=True)]
        count += float(some.double().sum()) * math.prod(places)
    sums: list[Tensor] = []
    for products, maps in ((second, of_z), (cross, of_x))[: 1 if same else 2]:
        columns = maps.windows_sum()
        sums += [products.take().reshape(*columns.shape, -1), columns]
    return _about_zero(sums, count, of_x.windows_about(), of_z.windows_about())


class _Maps:
    """Maps with their padding, about a point near to their mean, and what their windows add up to.

    Args:
        maps: (N, channels, ...) all there are; the first image's mean is near enough.
        layer: whose windows lie on them.
        kind: of number to compute with.
    """

    def __init__(self, maps: Tensor, layer: LayerShape, kind: torch.dtype) -> None:
        self._layer, self._kind = layer, kind
        means = maps[:1].to(kind).flatten(2).mean((0, -1))
        self._about = means.reshape(-1, *[1] * (maps.dim() - 2))
        self._total: Tensor | None = None

    def added(self, some: Tensor, counts: Tensor) -> Tensor:
        """Some images about that point, which count so much from now on; times the roots of that."""
        maps = padded(some.to(self._kind), self._layer) - self._about
        roots = counts.to(self._kind).sqrt().reshape(-1, *[1] * (maps.dim() - 1))
        maps *= roots
        total = over_images(maps * roots).double()
        self._total = total if self._total is None else self._total + total
        return maps

    def windows_sum(self) -> Tensor:
        """(groups, columns) float64, over all windows so far."""
        assert self._total is not None
        within = replace(self._layer, padding=((0, 0),) * len(self._layer.kernel))
        return unfolded(self._total.unsqueeze(0), within).sum(-1)

    def windows_about(self) -> Tensor:
        """(groups, columns), the point as windows have it."""
        return self._about.flatten().repeat_interleave(math.prod(self._layer.kernel)).reshape(self._layer.groups, -1)


def _of_a_tap(layer: LayerShape) -> LayerShape:
    """A layer that reads what this one gives, pixel by pixel."""
    once = (1,) * len(layer.kernel)
    nothing = ((0, 0),) * len(layer.kernel)
    return replace(layer, inputs=layer.outputs, kernel=once, dilation=once, padding=nothing)


def _side_by_side(layer: LayerShape) -> bool:
    """Whether windows overlap at every place, so that shifts serve all of them."""
    plain = not layer.linear and not layer.transposed and (layer.groups == 1 or _is_depthwise(layer))
    return plain and math.prod(layer.kernel) > 1 and all(stride == 1 for stride in layer.stride)


def _is_depthwise(layer: LayerShape) -> bool:
    return layer.groups == layer.inputs == layer.outputs


def _is_tiny(samples: Tensor) -> bool:
    return float(samples.abs().amax()) < _TINY if samples.numel() else False


def _added(sums: list[Tensor], found: list[Tensor]) -> list[Tensor]:
    """Sums of before and these, in float64."""
    if not sums:
        return [part.double() for part in found]
    for total, part in zip(sums, found, strict=True):
        total.add_(part)  # in place: a matrix of 4,608 columns has 170 MB
    return sums


def _about_zero(sums: list[Tensor], count: float, about_x: Tensor, about_z: Tensor) -> PairMoments:
    """Moments about zero, of sums of (z - b)(z - b)^T and z - b, and of (x - a)(z - b)^T and x - a where x is not z.

    Args:
        sums: float64, changed in place; (groups, n, n) and (groups, n), and (groups, m, n) and (groups, m).
        count: samples in them, or the sum of their weights.
        about_x, about_z: a (groups, m) and b (groups, n).
    """
    second, off_z, *of_pairs = (total.div_(count or 1.0) for total in sums)
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
