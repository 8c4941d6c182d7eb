"""Changes of a convolution, from its windows and from running it for each."""

from __future__ import annotations

import pytest
import torch

from dprp.converter.analysis.window_changes import window_changes, windows_pay
from dprp.converter.lowrank.layers import convolve
from dprp.converter.lowrank.shapes import LayerShape, Plain, shape_of

from ..lowrank.test_moments import LAYERS, an_input


@torch.no_grad()
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_it_is_what_running_the_layer_for_each_change_gives(layer: Plain) -> None:
    shape, given = shape_of(layer), an_input(layer, 6)
    slopes = torch.randn(layer(given).shape)
    changes = [torch.randn(shape.weight), 0.1 * torch.randn(shape.weight)]
    squares, products = window_changes(changes, given, slopes, shape)
    for change, square, product in zip(changes, squares, products, strict=True):
        moved = convolve(given, change, None, shape)
        across = (0, *range(2, moved.dim()))
        moved = moved - moved.mean(across, keepdim=True)
        torch.testing.assert_close(square, moved.square().sum(across).double(), rtol=1e-4, atol=0.0)
        torch.testing.assert_close(product, (moved * slopes).flatten(1).sum(1), rtol=1e-3, atol=1e-3)


def test_windows_pay_where_there_are_many_and_many_changes() -> None:
    wide = LayerShape("conv2d", 64, 64, kernel=(3, 3), padding=((1, 1), (1, 1)))
    assert windows_pay(wide, 10_000, 16)
    assert not windows_pay(wide, 10_000, 4)  # fewer than the values of a window, for each output
    assert not windows_pay(wide, 1_000, 16)
    assert not windows_pay(LayerShape("linear", 64, 64), 10_000, 16)
