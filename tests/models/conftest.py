"""Research data beside the repository, for the tests that need real checkpoints and images."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These tests are many tiny operations, where a second thread costs more than it brings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared_checkpoints() -> Path:
    folder = SHARED / "checkpoints"
    if not folder.is_dir():
        pytest.skip("needs the published checkpoints in ../shared/data/checkpoints")
    return folder


@pytest.fixture(scope="session")
def cifar_test_images() -> tuple[Tensor, Tensor]:
    """500 CIFAR-10 test images, uint8 (500, 32, 32, 3), and their labels."""
    script = SHARED / "cifar10" / "unpack.py"
    if not script.is_file():
        pytest.skip("needs the CIFAR-10 images in ../shared/data/cifar10")
    spec = importlib.util.spec_from_file_location("unpack_cifar10", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    images, labels = module.cifar10("test", limit=500)
    return torch.from_numpy(images.copy()), torch.from_numpy(labels)
