"""What the second of two factors sees of whole windows, through the first one.

The first factor takes some axes of the window; the second one's taps on the other axes lay it on one place after the
other. So the weight on whole windows is the second factor's matrix times a reach that is linear in the first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .forms import Form, factor_shapes
from .moments import PairMoments
from .shapes import LayerShape


def taps_of(shape: LayerShape, form: Form) -> list[Tensor]:
    """For each tap of the second factor's kernel, the columns of whole windows on which the first factor lies."""
    first, second = factor_shapes(shape, form, 1)
    columns = torch.arange(shape.inputs // shape.groups * math.prod(shape.kernel)).reshape(-1, *shape.kernel)
    taps = []
    for tap in itertools.product(*map(range, second.kernel)):
        there: Any = (slice(None), *(slice(at, at + size) for at, size in zip(tap, first.kernel, strict=True)))
        taps.append(columns[there].flatten())
    return taps


def reach(v: Tensor, taps: Sequence[Tensor], columns: int) -> Tensor:
    """The first factor on whole windows, at each tap: (groups, r taps, columns).

    Args:
        v: (groups, r, columns of the form).
        taps: of `taps_of`.
        columns: of whole windows.
    """
    laid = v.new_zeros(*v.shape[:2], len(taps), columns)
    for place, tap in enumerate(taps):
        laid[:, :, place, tap.to(v.device)] = v
    return laid.flatten(1, 2)


def gathered(laid: Tensor, taps: Sequence[Tensor]) -> Tensor:
    """The adjoint of `reach`: (groups, r taps, columns) -> (groups, r, columns of the form)."""
    parts = laid.reshape(len(laid), -1, len(taps), laid.shape[-1])
    return torch.stack([parts[:, :, place, tap.to(laid.device)] for place, tap in enumerate(taps)]).sum(0)


def seen_through(windows: PairMoments, shape: LayerShape, form: Form) -> PairMoments:
    """Moments of what the first factor sees, of those of whole windows: the mean over where the taps lay it.

    Counted so, a pixel at the border of the map weighs a little less than in `pair_moments`.
    """
    taps = taps_of(shape, form)

    def mean(part: Tensor, *axes: int) -> Tensor:
        seen = []
        for tap in taps:
            one = part
            for axis in axes:
                one = one.index_select(axis, tap.to(part.device))
            seen.append(one)
        return torch.stack(seen).mean(0)

    return PairMoments(
        mean(windows.cross, -2, -1), mean(windows.second, -2, -1), mean(windows.mean_x, -1), mean(windows.mean_z, -1)
    )
