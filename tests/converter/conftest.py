"""Small networks and real data for the converter's tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors on many threads spend their time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


class Residual(nn.Module):
    """Convolutions with BatchNorm, a residual join, a shared layer, one that never runs, and a dense head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.down = nn.Conv2d(24, 32, 3, stride=2, padding=1)
        self.down_norm = nn.BatchNorm2d(32)
        self.twice = nn.Conv2d(32, 32, 3, padding=1)
        self.alias = self.twice
        self.idle = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.down_norm(self.down(x)))
        x = x + torch.relu(self.twice(x))
        x = x + torch.relu(self.alias(x))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def residual() -> nn.Module:
    model = Residual()
    for norm in (model.norm, model.down_norm):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
        nn.init.normal_(norm.running_mean)
        nn.init.normal_(norm.bias)
    return model.eval()


@pytest.fixture(scope="session")
def cifar() -> dict[str, Tensor]:
    """Normalised train images, test images and test labels, a few of each."""
    folder = SHARED / "cifar10"
    if not folder.is_dir():
        pytest.skip("the shared CIFAR-10 images (../shared/data/cifar10) are not here")
    sys.path.insert(0, str(folder))
    try:
        from unpack import cifar10
    finally:
        sys.path.remove(str(folder))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    found = {}
    for split, count in (("train", 250), ("test", 500)):
        images, labels = cifar10(split, count)
        scaled = (torch.from_numpy(images).float() / 255 - mean) / std
        found[split] = scaled.permute(0, 3, 1, 2).contiguous()
        found[f"{split}_labels"] = torch.from_numpy(labels)
    return found


@pytest.fixture(scope="session")
def resnet20() -> nn.Module:
    """The real CIFAR-10 checkpoint."""
    path = SHARED / "checkpoints" / "resnet20.th"
    if not path.is_file():
        pytest.skip("the shared checkpoint (../shared/data/checkpoints/resnet20.th) is not here")
    from dprp.models import cifar_resnet20, load_weights

    model = cifar_resnet20()
    load_weights(model, path)
    return model.eval()
