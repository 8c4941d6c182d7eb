"""The whole chain on a real checkpoint and real images, on a small slice of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dprp.converter import Unit, load_compressed
from dprp.converter.chain.network import build_plain
from dprp.export import onnx_macs

TRAIN, TEST = 512, 500


@pytest.fixture(scope="module")
def cifar(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    spec = importlib.util.spec_from_file_location("unpack", shared / "cifar10" / "unpack.py")
    assert spec is not None
    assert spec.loader is not None
    unpack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpack)
    (x_train, y_train), (x_test, y_test) = unpack.cifar10("train", TRAIN), unpack.cifar10("test", TEST)
    path = tmp_path_factory.mktemp("cifar") / "slice.npz"
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return f"npz:{path}"


def test_resnet20_at_half_the_macs(dprp: Any, shared: Path, cifar: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    told = dprp(
        *("compress", "cifar_resnet20", "--checkpoint", shared / "checkpoints" / "resnet20.th", "--data", cifar),
        *("--budget", "macs=0.5", "--epochs", 1, "--polish", 20, "--batch-size", 32, "-o", folder, "--json"),
    ).json()
    dense, compressed = told["dense"], told["compressed"]
    assert (dense["params"], dense["macs"]) == (269_722, 40_551_040)
    assert dense["top1"] > 88
    assert 0.45 * dense["macs"] < compressed["macs"] <= 0.5 * dense["macs"]
    assert onnx_macs(folder / "compressed.onnx") == compressed["macs"]
    plan = load_compressed(folder / "compressed.safetensors", build_plain).plan
    assert plan.total(Unit.MACS) == compressed["macs"]
    assert told["max_rel_error"] < 1e-4
    assert compressed["onnx_bytes"] < dense["onnx_bytes"]
    assert compressed["top1"] > 60
    score = dprp("evaluate", folder / "compressed.safetensors", "--data", cifar, "--json").json()
    assert score["images"] == TEST
    # The same network in torch and in ONNX Runtime: an image on the border may fall either way.
    assert abs(score["top1"] - compressed["top1"]) <= 0.4
