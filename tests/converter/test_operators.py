"""A compressed file asks a device for no more kinds of operators than the dense one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from dprp.converter import MacBudget, convert, fuse, plan_ranks, survey
from dprp.converter.chain.measure import new_operators
from dprp.export import op_counts, to_onnx
from dprp.models import build


def _transformer() -> nn.Module:
    return VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=256, num_classes=10)


_NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "cifar_resnet20": (lambda: build("cifar_resnet20"), 32),
    "squeezenet1_1": (lambda: torchvision.models.squeezenet1_1(num_classes=10), 64),
    "mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(num_classes=10), 64),
    "vision transformer": (_transformer, 32),
}


@pytest.mark.parametrize("name", _NETWORKS)
def test_no_more_kinds_of_operators(name: str, tmp_path: Path) -> None:
    make, side = _NETWORKS[name]
    torch.manual_seed(0)
    model, images = make().eval(), torch.randn(2, 3, side, side)
    small = convert(model, plan_ranks(survey(model, images), MacBudget(0.7), rank_multiple=4))
    dense, compressed = tmp_path / "dense.onnx", tmp_path / "compressed.onnx"
    to_onnx(fuse(model, images), images, dense)
    to_onnx(fuse(small, images), images, compressed)
    before, after = op_counts(dense), op_counts(compressed)
    assert sum(after.values()) != sum(before.values())
    assert len(after) <= len(before)
    # Attention that is opened takes its three projections apart by Split, where torch's does by Squeeze.
    new = {"Split"} if name == "vision transformer" else set()
    assert after.keys() - before.keys() == new
    told = "the compressed file has operators that the dense one has not: Split"
    assert new_operators(dense, compressed) == ([told] if new else [])
