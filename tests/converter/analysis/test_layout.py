"""Images are laid out as the network runs faster on them, and never where that changes what it computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dprp.converter import MacBudget, calibrate, convert, plan_ranks, survey
from dprp.converter.analysis.layout import laid_out
from dprp.converter.lowrank.decomposition import decompose
from dprp.converter.lowrank.forms import Form, full_rank, matricise
from dprp.converter.lowrank.layers import low_rank
from dprp.converter.lowrank.shapes import Map, shape_of

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def _last(images: Tensor) -> bool:
    return images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()


class Views(nn.Module):
    """Wants its maps one channel after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.head = nn.Linear(16 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(x.view(len(x), -1))


class Strides(nn.Module):
    """Answers something else to another layout."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :5] * x.stride(1)


class Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2).mean((2, 3))


def test_convolutions_get_channels_last() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 5))
    found = laid_out(model, IMAGES)
    assert _last(found)
    assert torch.equal(found, IMAGES)


def test_networks_that_want_the_other_layout_keep_it() -> None:
    for model in (Views(), Strides()):
        assert laid_out(model, IMAGES) is IMAGES
    model = Views()
    layers = survey(model, IMAGES[:1])
    plan = plan_ranks(layers, MacBudget(0.8), rank_multiple=1)
    assert plan.factored
    convert(model, plan, calibration=calibrate(model, layers, IMAGES))


@pytest.mark.parametrize("form", list(Form)[:4])
@pytest.mark.parametrize("rank", [1, 9])  # two steps, and one
def test_a_factored_layer_hands_on_the_layout_that_it_got(form: Form, rank: int) -> None:
    shape = replace(shape_of(nn.Conv2d(3, 16, 3, padding=1)), calls=(Map((8, 8), (8, 8)),))
    rank = min(rank, full_rank(shape, form))
    layer = low_rank(shape, form, decompose(matricise(torch.randn(16, 3, 3, 3), shape, form), rank), None)
    assert layer(IMAGES).is_contiguous()
    assert _last(layer(IMAGES.contiguous(memory_format=torch.channels_last)))


def test_images_are_untouched() -> None:
    before = IMAGES.clone()
    assert _last(laid_out(Writes(), IMAGES))
    assert torch.equal(IMAGES, before)


def test_what_is_no_image_stays() -> None:
    tokens = torch.randn(4, 7, 16)
    assert laid_out(nn.Linear(16, 5), tokens) is tokens
