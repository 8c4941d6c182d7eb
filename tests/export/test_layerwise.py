"""A file that computes something else is caught, and the layer that does is named."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from dprp.converter import fuse
from dprp.export import first_difference, layer_differences, to_onnx
from dprp.models import build


class Mixed(nn.Module):
    """Convolutions, products with a bias and without, one layer twice, one never."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False))
        self.rows, self.twice, self.head = nn.Linear(8, 16, bias=False), nn.Linear(16, 16), nn.Linear(16, 10)
        self.idle = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.rows(self.conv(x).flatten(2).mT)
        return self.head(self.twice(self.twice(rows).relu()).mean(1))


def plant(path: Path, weight: str, factor: float) -> None:
    """Makes a weight of a file wrong, in one of its rows."""
    model = onnx.load(path)
    found = next(entry for entry in model.graph.initializer if entry.name == weight)
    values = numpy_helper.to_array(found).copy()
    values[len(values) // 2] *= factor
    found.CopyFrom(numpy_helper.from_array(values, weight))
    onnx.save(model, path)


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    model = Mixed().eval()
    to_onnx(model, torch.randn(2, 3, 8, 8), tmp_path / "a.onnx")
    return model, tmp_path / "a.onnx"


def test_every_layer_is_compared_in_each_of_its_calls(mixed: tuple[nn.Module, Path]) -> None:
    model, file = mixed
    found = layer_differences(model, file, torch.randn(3, 3, 8, 8))
    assert [(one.layer, one.call) for one in found] == [
        ("conv.0", 0), ("conv.2", 0), ("rows", 0), ("twice", 0), ("twice", 1), ("head", 0),
    ]  # fmt: skip
    assert all(one.relative < 1e-5 for one in found)
    assert first_difference(found, 1e-5) is None


def test_names_of_nodes_say_which_layer_they_are(mixed: tuple[nn.Module, Path]) -> None:
    names = [node.name for node in onnx.load(mixed[1]).graph.node]
    assert {"conv.0/Conv", "conv.1/Relu", "conv.2/Conv", "rows/MatMul", "twice/Add", "twice/Add_1"} <= set(names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("weight", ["conv.0.weight", "conv.2.weight", "twice.bias", "head.weight"])
def test_a_wrong_weight_is_found_where_it_is(mixed: tuple[nn.Module, Path], weight: str) -> None:
    model, file = mixed
    plant(file, weight, 1.5)
    first = first_difference(layer_differences(model, file, torch.randn(3, 3, 8, 8)), 1e-3)
    assert first is not None
    assert first.layer == weight.rpartition(".")[0]
    assert f"{first.layer}: off by" in str(first)


def test_a_wrong_weight_in_the_middle_of_resnet18_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images, file = torch.randn(1, 3, 64, 64), tmp_path / "a.onnx"
    model = fuse(build("resnet18"), images)
    to_onnx(model, images, file)
    plant(file, "layer2.1.conv2.weight", 3.0)
    first = first_difference(layer_differences(model, file, images), 1e-3)
    assert first is not None
    assert first.layer == "layer2.1.conv2"


def test_a_layer_may_be_scaled_by_channel(mixed: tuple[nn.Module, Path]) -> None:
    model, file = mixed
    plant(file, "conv.0.weight", 4.0)
    plant(file, "conv.0.bias", 4.0)
    x = torch.randn(3, 3, 8, 8)
    assert first_difference(layer_differences(model, file, x), 1e-3).layer == "conv.0"  # type: ignore[union-attr]
    first = first_difference(layer_differences(model, file, x, scaled={"conv.0": 1}), 1e-3)
    assert first is not None
    assert first.layer == "conv.2"  # which reads what was scaled


def test_a_file_without_names_of_layers_is_compared_by_nothing(mixed: tuple[nn.Module, Path]) -> None:
    model, file = mixed
    document = onnx.load(file)
    for node in document.graph.node:
        node.name = ""
    onnx.save(document, file)
    assert layer_differences(model, file, torch.randn(3, 3, 8, 8)) == []
