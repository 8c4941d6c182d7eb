"""`dprp quantize`, on the digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dprp.export import is_quantized
from dprp.models import info, load_data, preprocess_for


def test_a_file_of_8_bits_beside_the_other(dprp: Any, small: Path, tmp_path: Path) -> None:
    file, int8 = tmp_path / "small.onnx", tmp_path / "int8.onnx"
    assert dprp("export", small, "-o", file).code == 0
    quantize = ("quantize", file, "--data", "digits", "-o", int8, "--images", 200)
    found = dprp(*quantize, "--json").json()
    before, after = found["files"]
    assert before["file"] == str(file)
    assert after["file"] == str(int8)
    assert after["size_bytes"] < before["size_bytes"]
    assert abs(after["top1"] - before["top1"]) < 3.0
    assert found["quantized"][0]["islands"] == []
    assert is_quantized(int8)
    assert dprp("verify", small, int8, "--data", "digits").code == 0
    noise = dprp("verify", small, int8)
    assert noise.code == 2
    assert "its 8 bits clip what real images never reached; give some by --data" in noise.err

    assert dprp(*quantize).code == 2  # it exists
    told = dprp(*quantize, "--force", "--max-drop", 50, "--target", "x86")
    assert told.code == 0, told.err
    assert "no layers in float32" in " ".join(told.out.split())


def test_without_labels_the_answers_of_the_file_count(dprp: Any, small: Path, tmp_path: Path) -> None:
    """Every image has the label 0, so that labels say nothing."""
    file, int8, data = tmp_path / "small.onnx", tmp_path / "int8.onnx", tmp_path / "images.npz"
    assert dprp("export", small, "-o", file).code == 0
    pixels = load_data("digits").train(preprocess_for(info("digits_cnn"))).arrays.images  # type: ignore[attr-defined]
    images = pixels.movedim(1, -1).numpy()
    labels = np.zeros(len(images), dtype=np.int64)
    np.savez(data, x_train=images[:900], y_train=labels[:900], x_test=images[900:], y_test=labels[900:])
    quantize = ("quantize", file, "--data", f"npz:{data}", "-o", int8, "--images", 200, "--max-drop", 5)
    found = dprp(*quantize, "--judge", "answers", "--json").json()
    before, after = found["files"]
    assert not found["labelled"]
    assert before["top1"] == found["quantized"][0]["before"] == 100.0
    assert 95.0 <= found["quantized"][0]["after"] <= 100.0
    assert 90.0 < after["top1"] <= 100.0
    by_labels = dprp(*quantize, "--force", "--json").json()
    assert by_labels["labelled"]
    assert by_labels["files"][0]["top1"] < 30.0
    assert "same answer of" in dprp(*quantize, "--judge", "answers", "--force").out


def test_mistakes_are_one_sentence(dprp: Any, small: Path, tmp_path: Path) -> None:
    file = tmp_path / "small.onnx"
    assert dprp("export", small, "-o", file).code == 0
    out = tmp_path / "int8.onnx"
    for arguments, message in (
        ((small, "--data", "digits", "-o", out), "not an ONNX model"),
        ((file, "--data", "digits", "-o", tmp_path / "int8.txt"), "an ONNX file is named .onnx; name it so"),
        ((file, "--data", "digits", "-o", file, "--force"), "is read as an input, too"),
        ((file, "--data", "digits", "-o", out, "--max-drop", 1, "--float-node", "x"), "leave --float-node out"),
        ((file, "--data", "digits", "-o", out, "--float-node", "x"), "has no layer x"),
        ((file, "--data", "digits", "-o", out, "--target", "gpu"), "gpu"),
    ):
        answer = dprp("quantize", *arguments)
        assert answer.code == 2, answer.out
        assert message in answer.err, answer.err
        assert not out.exists()
