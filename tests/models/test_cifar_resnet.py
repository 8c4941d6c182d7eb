from pathlib import Path

import pytest
import torch
from torch import Tensor

from dprp.models import (
    CifarResNet,
    build,
    cifar_resnet20,
    cifar_resnet32,
    cifar_resnet44,
    cifar_resnet56,
    cifar_resnet110,
    info,
    load_data,
    load_weights,
    loader,
    preprocess_for,
)
from dprp.models.cifar_resnet import ZeroPadShortcut


@pytest.mark.parametrize(
    ("make", "depth", "parameters"),
    [
        (cifar_resnet20, 20, 269_722),
        (cifar_resnet32, 32, 464_154),
        (cifar_resnet44, 44, 658_586),
        (cifar_resnet56, 56, 853_018),
        (cifar_resnet110, 110, 1_727_962),
    ],
)
def test_depth_and_parameters_are_the_published_ones(make, depth: int, parameters: int) -> None:
    model = make()
    weighted = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(weighted) == depth
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_shortcut_subsamples_and_pads_without_parameters() -> None:
    shortcut = ZeroPadShortcut(16, stride=2)
    x = torch.randn(2, 16, 8, 8)
    y = shortcut(x)
    assert list(shortcut.state_dict()) == []
    assert y.shape == (2, 32, 4, 4)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_classes_sets_the_head() -> None:
    assert cifar_resnet20(classes=100)(torch.randn(2, 3, 32, 32)).shape == (2, 100)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar_resnet20", "resnet20.th"),
        ("cifar_resnet32", "resnet32.th"),
        ("cifar_resnet56", "resnet56.th"),
    ],
)
def test_published_checkpoints_load(shared_checkpoints: Path, name: str, file: str) -> None:
    model = build(name)
    before = model.get_parameter("linear.weight").clone()
    load_weights(model, shared_checkpoints / file)
    assert isinstance(model, CifarResNet)
    assert not torch.equal(model.linear.weight, before)


def test_published_resnet20_is_as_accurate_as_published(
    shared_checkpoints: Path, cifar_test_images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    import numpy as np

    images, labels = (tensor.numpy() for tensor in cifar_test_images)
    np.savez(tmp_path / "c.npz", x_train=images[:1], y_train=labels[:1], x_test=images, y_test=labels)
    data = load_data(f"npz:{tmp_path / 'c.npz'}")
    model = build("cifar_resnet20")
    load_weights(model, shared_checkpoints / "resnet20.th")
    correct = 0
    with torch.inference_mode():
        for x, y in loader(data.test(preprocess_for(info("cifar_resnet20"))), 250):
            correct += int((model(x).argmax(1) == y).sum())
    assert correct / 500 >= 0.88
