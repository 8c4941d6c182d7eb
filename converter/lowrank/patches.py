"""What a convolution multiplies with its weight: each patch of its input as one vector, some images at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .layers import padded
from .shapes import LayerShape

CHUNK_BYTES = 64 * 2**20
"""Of patches made at once."""

Summed = tuple[Tensor, int]
"""An input summed over its images, and how many these are."""


def patches(x: Tensor, layer: LayerShape) -> Iterator[Tensor]:
    """What a layer multiplies with its weight, some images at a time.

    Args:
        x: (N, inputs, ...), or (..., inputs) for a linear layer.

    Yields:
        (groups, n, samples), n = inputs / groups * prod(kernel) in the order of the form `channel`.
    """
    if layer.linear:
        rows = x.reshape(-1, x.shape[-1])
        for part in torch.split(rows, max(1, CHUNK_BYTES // (4 * x.shape[-1]))):
            yield part.float().mT.unsqueeze(0)
        return
    if x.dim() == 1 + len(layer.kernel):  # one image without a batch
        x = x.unsqueeze(0)
    spread = math.prod(layer.kernel) * (math.prod(layer.stride) if layer.transposed else 1)
    images = max(1, CHUNK_BYTES // (4 * spread * max(1, x[:1].numel())))
    for part in torch.split(x, images):
        yield unfolded(part.float(), layer)


def answered_patches(y: Tensor, x: Tensor, layer: LayerShape) -> Iterator[tuple[Tensor, Tensor]]:
    """What a layer gives beside the patches that it was made of, some images at a time.

    Args:
        y: (N, outputs, ...), or (..., outputs) of a linear layer.
        x: as for `patches`.

    Yields:
        (groups, outputs / groups, samples) and (groups, n, samples).
    """
    start = 0
    if layer.linear:
        rows = y.reshape(-1, y.shape[-1])
        for part in patches(x, layer):
            yield rows[start : start + part.shape[-1]].float().mT.unsqueeze(0), part
            start += part.shape[-1]
        return
    if y.dim() == 1 + len(layer.kernel):  # one image without a batch
        y = y.unsqueeze(0)
    places = math.prod(y.shape[2:])
    for part in patches(x, layer):
        images = part.shape[-1] // places
        yield by_group(y[start : start + images].float(), layer.groups), part
        start += images


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
    return over_images(x.float()), len(x)


def over_images(maps: Tensor) -> Tensor:
    """Their sum; channels last, it is many times faster along memory as it lies."""
    return maps.sum(0) if maps.is_contiguous() else maps.movedim(1, -1).sum(0).movedim(-1, 0)


def unfolded(x: Tensor, layer: LayerShape) -> Tensor:
    """im2col by copying shifted views: many times faster on a CPU than F.unfold."""
    if layer.transposed:
        x, stride = _stretched(x, layer), (1,) * len(layer.stride)
    else:
        x, stride = padded(x, layer), layer.stride
    if math.prod(layer.kernel) == 1:
        every: Any = (..., *(slice(None, None, s) for s in stride))
        return by_group(x[every], layer.groups)
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


def by_group(maps: Tensor, groups: int) -> Tensor:
    """(N, channels, ...) as (groups, channels / groups, samples); a view where they lie channels last."""
    rows = maps.movedim(1, -1).reshape(-1, groups, maps.shape[1] // groups)
    return rows.permute(1, 2, 0)


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
