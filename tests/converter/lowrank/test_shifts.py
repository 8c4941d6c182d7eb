"""Products of windows by shifts are those of the windows themselves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dprp.converter import Form
from dprp.converter.lowrank import moments as moments_module
from dprp.converter.lowrank.moments import moments_of, pair_moments
from dprp.converter.lowrank.patches import patches
from dprp.converter.lowrank.shapes import Plain, shape_of
from dprp.converter.lowrank.shifts import Axis, TapProducts, WindowProducts, by_channel


@st.composite
def maps(draw: st.DrawFn) -> tuple[list[Axis], torch.Tensor, torch.Tensor]:
    axes = draw(st.lists(st.builds(Axis, st.integers(1, 3), st.integers(1, 2)), min_size=1, max_size=3))
    sizes = [axis.dilation * (axis.taps - 1) + draw(st.integers(1, 3)) for axis in axes]
    images, left, right = (draw(st.integers(1, 3)) for _ in range(3))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    return axes, *(torch.randn(images, channels, *sizes, dtype=torch.float64) for channels in (left, right))


def windows(x: torch.Tensor, axes: list[Axis]) -> torch.Tensor:
    """(channels, taps..., samples), by torch's own unfolding of one axis after the other."""
    for place, axis in enumerate(axes, start=2):
        x = x.unfold(place, axis.dilation * (axis.taps - 1) + 1, 1)[..., :: axis.dilation]
    x = x.movedim(1, 0)
    dims = len(axes)
    return x.permute(0, *range(2 + dims, x.dim()), *range(1, 2 + dims)).flatten(1 + dims)


def _places(x: torch.Tensor, axes: list[Axis]) -> list[int]:
    return [size - axis.dilation * (axis.taps - 1) for size, axis in zip(x.shape[2:], axes, strict=True)]


def summed(products: WindowProducts | TapProducts, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """One image after the other."""
    for one, other in zip(torch.split(p, 1), torch.split(q, 1), strict=True):
        products.add(one, other)
    return products.take()


@given(maps())
@settings(max_examples=60, deadline=None)
def test_sums_are_those_of_all_windows(case: tuple[list[Axis], torch.Tensor, torch.Tensor]) -> None:
    axes, p, q = case
    ours, theirs = windows(p, axes), windows(q, axes)
    places = p[(..., *(slice(size) for size in _places(p, axes)))]
    at = places.transpose(0, 1).flatten(1)
    for wanted, found in (
        (torch.tensordot(ours, theirs, ([-1], [-1])), summed(WindowProducts(axes, same=False), p, q)),
        (torch.tensordot(ours, ours, ([-1], [-1])), summed(WindowProducts(axes, same=True), p, p)),
        (torch.tensordot(at, theirs, ([-1], [-1])), summed(TapProducts(axes), places, q)),
    ):
        torch.testing.assert_close(found, wanted)


@given(maps())
@settings(max_examples=40, deadline=None)
def test_those_by_channel_are_the_diagonal_of_all(case: tuple[list[Axis], torch.Tensor, torch.Tensor]) -> None:
    axes, p, _ = case
    q = p.flip(0) + 0.5 * p
    places = p[(..., *(slice(size) for size in _places(p, axes)))]
    pairs = (
        (WindowProducts(axes, False), WindowProducts(axes, False, by_channel), p, len(axes)),
        (WindowProducts(axes, True), WindowProducts(axes, True, by_channel), q, len(axes)),
        (TapProducts(axes), TapProducts(axes, by_channel), places, 0),
    )
    for every, own, first, taps in pairs:
        wanted = summed(every, first, q).diagonal(dim1=0, dim2=1 + taps).movedim(-1, 0)
        torch.testing.assert_close(summed(own, first, q), wanted)


LAYERS = [
    nn.Conv1d(3, 2, 5, padding=2, padding_mode="replicate"),
    nn.Conv2d(3, 2, 3, padding=1),
    nn.Conv2d(3, 2, (2, 3), dilation=(2, 1)),
    nn.Conv2d(3, 2, 3, padding="same", padding_mode="circular"),
    nn.Conv3d(3, 2, (3, 2, 1), padding=(1, 0, 0)),
    nn.Conv2d(3, 3, 3, padding=1, groups=3),
    nn.Conv1d(3, 3, 3, dilation=2, groups=3, padding=1, padding_mode="reflect"),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("far", [0.0, 1e3])
def test_moments_are_those_of_patches(layer: Plain, far: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of two networks and of one, however far from zero, in chunks of one image."""
    monkeypatch.setattr(moments_module, "CHUNK_BYTES", 1)
    x = far + torch.randn(4, 3, *(7, 8, 6)[: len(layer.kernel_size)])
    z, shape = x + 0.3 * torch.randn_like(x), shape_of(layer)
    for one, other in ((x, z), (z, z)):
        found = pair_moments(one, other, shape, Form.CHANNEL)
        rows = zip(patches(one.double(), shape), patches(other.double(), shape), strict=True)
        wanted = moments_of((left.double(), right.double()) for left, right in rows)
        for ours, theirs in zip(found.centred(), wanted.centred(), strict=True):
            largest = float(theirs.abs().max())  # with padding, of far maps, the border is all that counts
            torch.testing.assert_close(ours, theirs.squeeze(0), rtol=1e-4, atol=1e-5 * largest)


def test_one_image_needs_no_batch() -> None:
    layer = nn.Conv2d(3, 2, 3, padding=1)
    x = torch.randn(3, 6, 5)
    wanted, found = (pair_moments(one, one, shape_of(layer), Form.CHANNEL) for one in (x.unsqueeze(0), x))
    torch.testing.assert_close(found.second, wanted.second)
