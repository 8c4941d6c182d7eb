from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dprp.export import to_onnx


class SmallNet(nn.Module):
    """BatchNorm, a residual, a stride, groups and a dense layer on 3 x 12 x 12 images; 6 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 16, 3, stride=2)
        self.fc = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = (x + self.bn2(self.conv2(x))).relu()
        return self.fc(self.conv3(x).relu().mean((2, 3)))


@pytest.fixture(scope="session")
def net() -> nn.Module:
    """With statistics unlike those of a fresh net, so that forgetting to fold or to call eval() shows."""
    torch.manual_seed(0)
    model = SmallNet()
    for _ in range(5):
        model(torch.randn(32, 3, 12, 12) * 2 + 1)
    for bn in (model.bn1, model.bn2):
        nn.init.uniform_(bn.weight, 0.5, 2.0)
        nn.init.normal_(bn.bias)
    return model.eval()


@pytest.fixture(scope="session")
def file(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`net` as ONNX, exported from one image; not to be written to."""
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    to_onnx(net, torch.randn(1, 3, 12, 12), path, metadata={"plan": '{"ranks": [1, 2]}', "note": "größer"})
    return path
