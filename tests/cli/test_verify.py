"""`dprp verify`: files that agree, and the layer of one that does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dprp.models import DIGITS_WEIGHTS

from ..export.test_layerwise import plant


def test_a_file_agrees_until_a_weight_in_it_is_wrong(dprp: Any, small: Path, tmp_path: Path) -> None:
    file = tmp_path / "small.onnx"
    assert dprp("export", small, "-o", file).code == 0
    found = dprp("verify", small, file, "--json").json()
    assert found["ok"]
    assert found["top1_agreement"] == 1.0
    assert found["images"] == 8 + 1 + 2 + 5
    assert found["layers"] > 5
    assert found["first_different_layer"] is None
    told = dprp("verify", small, file, "--data", "digits")
    assert told.code == 0
    assert f"all of {found['layers']} layers agree" in told.out

    plant(file, "block3.conv.0.weight", 2.0)
    wrong = dprp("verify", small, file)
    assert wrong.code == 1
    assert "outputs differ from torch" in wrong.out
    assert f"the first of {found['layers']} layers that differs is block3.conv.0: off by" in wrong.out
    answer = dprp("verify", small, file, "--json")
    assert answer.code == 1
    assert json.loads(answer.out)["first_different_layer"]["layer"] == "block3.conv.0"
    assert dprp("verify", small, file, "--tolerance", 10, "--layer-tolerance", 10).code == 0


def test_float16_has_tolerances_of_its_own(dprp: Any, small: Path, tmp_path: Path) -> None:
    file = tmp_path / "half.onnx"
    assert dprp("export", small, "--half", "-o", file).code == 0
    assert dprp("verify", small, file).code == 0
    assert dprp("verify", small, file, "--tolerance", 1e-6).code == 1


def test_a_file_of_one_image_a_run_is_used_as_any_other(dprp: Any, small: Path, tmp_path: Path) -> None:
    file, eighth = tmp_path / "one.onnx", tmp_path / "eighth.onnx"
    assert dprp("export", small, "--batch", 1, "-o", file).code == 0
    answer = dprp("verify", small, file, "--data", "digits", "--json")
    assert answer.code == 0
    assert json.loads(answer.out)["first_different_layer"] is None
    scores = [json.loads(dprp("evaluate", which, "--data", "digits", "--json").out) for which in (small, file)]
    assert scores[0]["top1"] == scores[1]["top1"]
    assert dprp("quantize", file, "--data", "digits", "-o", eighth).code == 0
    many = dprp("benchmark", file, eighth, "--batch", 4)
    assert many.code == 2
    assert "one.onnx: has a fixed batch of 1, asked for 4" in many.err


def test_dense_files_are_verified_too(dprp: Any, small: Path, tmp_path: Path) -> None:
    file = tmp_path / "dense.onnx"
    dense = ("digits_cnn", "--checkpoint", DIGITS_WEIGHTS)
    assert dprp("export", *dense, "-o", file).code == 0
    assert dprp("verify", "digits_cnn", file, "--checkpoint", DIGITS_WEIGHTS).code == 0
    other = dprp("verify", small, file)
    assert other.code == 1
    assert "layers that differs" in other.out


def test_what_cannot_be_verified_is_one_sentence(dprp: Any, small: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ((small, small), "is no .onnx file; give the network first, then its ONNX file"),
        ((small, tmp_path / "none.onnx"), "none.onnx"),
    ):
        answer = dprp("verify", *arguments)
        assert answer.code == 2
        assert message in answer.err
        assert answer.err.count("\n") == 1
