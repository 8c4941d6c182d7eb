"""Errors that the answers do not feel cost little: of channels that nothing reads, and of mixtures that cancel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dprp.converter import FixedRank, calibrate, convert, plan_ranks, survey
from dprp.converter.analysis.agreement import agreement
from dprp.converter.analysis.calibration import Calibration
from dprp.converter.analysis.output_metrics import output_metrics

EXAMPLE = torch.zeros(1, 3, 8, 8)


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).cumsum(-1)


class Reader(nn.Module):
    """Reads some channels of a convolution and not the others."""

    def __init__(self, read: Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, len(read), 3, padding=1)
        self.head = nn.Linear(len(read), 4)
        with torch.no_grad():
            self.head.weight.mul_(read)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.conv(x).mean((2, 3)))
        return answer


def metrics_of(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    layers = survey(model.eval(), images[:1])
    shapes = {layer.name: layer.shape for layer in layers if layer.shape is not None}
    return output_metrics(model, shapes, images, dict.fromkeys(shapes, 0))


def test_channels_that_nothing_reads_count_next_to_nothing() -> None:
    read = torch.tensor([1.0, 1, 1, 0, 0, 0])
    metric = metrics_of(Reader(read), pictures(256))["conv"]
    assert metric.diagonal().mean() == pytest.approx(1, rel=2e-3)
    assert metric.diagonal()[3:].max() < 0.05 * metric.diagonal()[:3].min()
    assert torch.linalg.eigvalsh(metric)[0] > 0


def test_more_images_bring_it_nearer_and_one_says_nothing() -> None:
    model = Reader(torch.ones(12))
    settled = metrics_of(model, pictures(4096, seed=1))["conv"]
    away = [float((metrics_of(model, pictures(count))["conv"] - settled).norm()) for count in (4, 64, 1024)]
    assert away[0] > away[1] > away[2]
    assert "conv" not in metrics_of(model, pictures(1))


def test_images_that_disagree_leave_the_identity() -> None:
    """A classifier of more classes than images: each image has a direction of its own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 200))
    metric = metrics_of(model, pictures(20))["1"]
    torch.testing.assert_close(metric, torch.eye(200, dtype=torch.float64), rtol=0, atol=0.1)


@pytest.mark.parametrize("groups", [1, 2])
def test_mixtures_of_channels_are_told_apart_in_each_group(groups: int) -> None:
    """The head reads differences of neighbours only: their sums may be wrong as they like."""

    class Differences(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(4, 8, 1, groups=groups)
            self.head = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x).mean((2, 3))
            answer: Tensor = self.head(y[:, ::2] - y[:, 1::2])
            return answer

    images = torch.randn(256, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    metric = metrics_of(Differences(), images)["conv"].reshape(groups, 8 // groups, 8 // groups)
    pairs = torch.block_diag(*[torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / 2**0.5] * (4 // groups)).double()
    felt = (pairs @ metric @ pairs.mT).diagonal(dim1=-2, dim2=-1)
    assert felt[:, ::2].max() < 0.05 * felt[:, 1::2].min()


def test_a_plan_converted_in_it_answers_more_like_the_dense_network() -> None:
    """Two thirds of the channels are louder, and are not read."""
    model = Reader(torch.tensor([1.0] * 4 + [0.0] * 8)).eval()
    with torch.no_grad():
        model.conv.weight[4:].mul_(3)
    layers = survey(model, EXAMPLE)
    plan = plan_ranks(layers, FixedRank(2), keep=["head"])
    calibration = calibrate(model, layers, pictures(200))
    felt = convert(model, plan, calibration=calibration)
    blind = convert(model, plan, calibration=Calibration(calibration.images, calibration.energies))
    others = pictures(200, seed=1)
    assert agreement(felt, model, others).nats < 0.5 * agreement(blind, model, others).nats


def test_layers_and_networks_without_slopes_have_none() -> None:
    class Aside(nn.Module):
        """One layer behind which gradients end, one whose outputs are one a group, one that is read."""

        def __init__(self) -> None:
            super().__init__()
            self.lost = nn.Conv2d(3, 8, 3)
            self.read = nn.Conv2d(3, 8, 3)
            self.depthwise = nn.Conv2d(3, 3, 3, groups=3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                aside = self.lost(x)
            return F.relu(self.read(x) + aside + self.depthwise(x).sum(1, keepdim=True)).mean((2, 3))

    assert metrics_of(Aside(), pictures(20)).keys() == {"read"}

    class Says(nn.Module):
        """Gives words."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> str:
            return str(self.conv(x).shape)

    model = Says().eval()
    shapes = {layer.name: layer.shape for layer in survey(Aside(), EXAMPLE) if layer.name == "read" and layer.shape}
    assert output_metrics(model, {"conv": shapes["read"]}, pictures(4), {"conv": 0}) == {}
