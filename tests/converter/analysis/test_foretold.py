"""Errors that plans foretell hold on images that nothing was fitted on."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet, VisionTransformer
from torchvision.models.resnet import BasicBlock

from dprp.converter import Form
from dprp.models import build, load_weights

from ..conftest import SHARED
from .foretold import Foretold, foretold, pictures

_HOLD = 0.9
"""Part of the layers that must hold: others have few samples, and a fit on all images is better."""


def _imagenet(size: int) -> tuple[Tensor, Tensor]:
    """Calibration and test images, made smaller."""
    folder = SHARED / "imagenet"
    if not folder.is_dir():
        pytest.skip("the shared ImageNet images (../shared/data/imagenet) are not here")
    sys.path.insert(0, str(folder))
    try:
        sys.modules.pop("unpack", None)  # CIFAR-10's has the same name
        from unpack import imagenet
    finally:
        sys.modules.pop("unpack", None)
        sys.path.remove(str(folder))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    found = []
    for split in ("calibration", "test"):
        images = torch.from_numpy(imagenet(split)[0][:200]).float().permute(0, 3, 1, 2) / 255
        found.append(F.interpolate((images - mean[:, None, None]) / std[:, None, None], size, mode="area"))
    return found[0], found[1]


def _check(found: list[Foretold]) -> None:
    wrong = [one for one in found if not one.holds]
    assert len(found) >= 6
    assert len(wrong) <= (1 - _HOLD) * len(found), wrong


@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_1"])
def test_real_networks(name: str) -> None:
    path = SHARED / "checkpoints" / f"{name}.pth"
    if not path.is_file():
        pytest.skip(f"the shared checkpoint (../shared/data/checkpoints/{name}.pth) is not here")
    model = build(name)
    load_weights(model, path)
    _check(foretold(model, *_imagenet(96)))


def _vit() -> nn.Module:
    return VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=256, num_classes=10)


def _resnet() -> nn.Module:
    """Without the last two stages, whose maps would be one pixel: fewer samples than inputs."""
    model = ResNet(BasicBlock, [1, 1, 1, 1])
    model.layer3 = model.layer4 = nn.Identity()
    model.fc = nn.Linear(128, 10)
    return model


@pytest.mark.parametrize(("make", "size"), [(_resnet, 64), (_vit, 32)])
def test_fresh_networks(make: Callable[[], nn.Module], size: int) -> None:
    torch.manual_seed(0)
    _check(foretold(make(), *pictures(240, size).split(120)))


@pytest.mark.parametrize("width", [128, 160])
def test_layers_with_few_windows(width: int) -> None:
    """24 images to fit on have 864 windows for 1,152 and 1,440 values: a fit to these follows each of them."""
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, width, 3, 4, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.AvgPool2d(4, 2, 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]
    model = nn.Sequential(*stem, nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU(), *head)
    found = [one for one in foretold(model, *pictures(72, 48).split(36)) if one.layer == str(len(stem))]
    assert {one.form for one in found} == {Form.CHANNEL, Form.POINTWISE}
    assert all(one.holds for one in found), found
