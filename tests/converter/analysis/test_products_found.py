"""Which two layers are one matrix: found by watching who reads what."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision import models as torchvision_models

from dprp.converter import RankRatio, convert, fuse, plan_ranks, survey
from dprp.converter.lowrank.products import Product


class Variant(nn.Module):
    """(N, 12) -> (N, 12), from two layers with 3 channels in between, and what may come between them."""

    def __init__(self, between: Callable[[nn.Module, Tensor], Tensor], *, width: int = 3, second: int = 12) -> None:
        super().__init__()
        self.first = nn.Linear(12, width)
        self.second = nn.Linear(width, second)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self, self.first(x)))  # type: ignore[no-any-return]


def hooked() -> nn.Module:
    model = Variant(lambda _, x: x)
    model.first.register_forward_hook(lambda *_: None)
    return model


def half_frozen() -> nn.Module:
    model = Variant(lambda _, x: x)
    model.first.requires_grad_(False)
    return model


class Asks(Variant):
    """Asks its first layer for its size."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, : 4 * self.first.out_features]


class Shown(Variant):
    """Answers with what lies between, too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        inner = self.first(x)
        return self.second(inner), inner


class Aside(Variant):
    """Reads what lies between a second time."""

    def forward(self, x: Tensor) -> Tensor:
        inner = self.first(x)
        return self.second(inner) + inner.sum(-1, keepdim=True)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "model",
    [
        Variant(lambda _, x: x.relu()),
        Variant(lambda _, x: x + 1),
        Variant(lambda _, x: x, width=6),
        Variant(lambda _, x: x, width=1),
        hooked(),
        half_frozen(),
        Asks(lambda _, x: x),
        Shown(lambda _, x: x),
        Aside(lambda _, x: x),
        nn.Sequential(nn.Conv2d(12, 3, 1), nn.Conv2d(3, 12, 3)),
        nn.Sequential(nn.Conv2d(12, 3, 3), nn.Conv2d(3, 12, 1)),
        nn.Sequential(nn.Conv2d(12, 3, 1, padding=1), nn.Conv2d(3, 12, 1)),
        nn.Sequential(nn.Conv2d(12, 3, 1), nn.Conv2d(3, 12, 1, stride=2)),
        nn.Sequential(nn.Conv2d(12, 3, 1, groups=3), nn.Conv2d(3, 12, 1)),
        nn.Sequential(nn.Conv2d(12, 3, 1), nn.BatchNorm2d(3, track_running_stats=False), nn.Conv2d(3, 12, 1)),
        nn.Sequential(nn.Conv2d(12, 3, 1), nn.InstanceNorm2d(3), nn.Conv2d(3, 12, 1)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_other_pairs_are_two_layers(model: nn.Module) -> None:
    x = torch.randn(2, 12, *((6, 6) if isinstance(model, nn.Sequential) else ()))
    assert survey(model.eval(), x).products == {}


class TwoNames(nn.Module):
    """Its first pair goes by other names where it runs; the second one is a product."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 3), nn.Linear(3, 12)
        self.both = nn.Sequential(self.first, self.second)
        self.others = nn.Sequential(nn.Linear(12, 3), nn.Linear(3, 12))

    def forward(self, x: Tensor) -> Tensor:
        return self.others(self.both(x).relu())  # type: ignore[no-any-return]


class OutsideOfModules(nn.Module):
    """Calls its layers by a list of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 3), nn.Linear(3, 12)
        self.both = [self.first, self.second]

    def forward(self, x: Tensor) -> Tensor:
        return self.both[1](self.both[0](x))  # type: ignore[no-any-return]


def test_a_product_that_would_not_run_is_none() -> None:
    layers = survey(TwoNames().eval(), torch.randn(2, 12))
    assert layers.products == {"others.1": Product("others.0")}
    assert layers.macs == 4 * 12 * 3
    layers = survey(OutsideOfModules().eval(), torch.randn(2, 12))
    assert layers.products == {}
    assert layers.macs == 2 * 12 * 3


def test_of_three_in_a_row_two_are_one() -> None:
    model = nn.Sequential(nn.Linear(12, 3), nn.Linear(3, 12), nn.Linear(12, 3), nn.Linear(3, 12)).eval()
    assert survey(model, torch.randn(2, 12)).products == {"1": Product("0"), "3": Product("2")}


def test_a_fused_network_is_not_joined_again() -> None:
    model = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 5)).eval()
    x = torch.randn(4, 24)
    plain = fuse(convert(model, plan_ranks(survey(model, x), RankRatio(0.25))), x)
    assert survey(plain, x).products == {}


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("mobilenet_v2", {"features.2.conv.0.0": "features.1.conv.1", "features.18.0": "features.17.conv.2"}),
        ("mnasnet0_5", {"layers.8.0.layers.0": "layers.6", "layers.14": "layers.13.0.layers.6"}),
        (
            "efficientnet_b0",
            {"features.2.0.block.0.0": "features.1.0.block.2.0", "features.8.0": "features.7.0.block.3.0"},
        ),
        ("resnet18", {}),
        ("squeezenet1_1", {}),
    ],
)
def test_pairs_of_torchvisions_networks(name: str, pairs: dict[str, str]) -> None:
    torch.manual_seed(0)
    model = torchvision_models.get_model(name, weights=None).eval()
    found = {second: product.first for second, product in survey(model, torch.zeros(1, 3, 64, 64)).products.items()}
    assert found == pairs
