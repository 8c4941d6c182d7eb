"""Outputs that cannot be written: one sentence, exit code 2, and what is there stays."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dprp.models import DIGITS_WEIGHTS

from .conftest import COMPRESS, CONVERT, Refused


def test_outputs_that_exist(refused: Refused, tmp_path: Path, small: Path) -> None:
    for name in ("there.safetensors", "there.onnx", "there.json"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "there").mkdir()
    values = {"small": small, "weights": DIGITS_WEIGHTS}
    refused(CONVERT + "{weights} -o there.safetensors", "there.safetensors: exists already; pass --force", **values)
    refused(CONVERT + "{weights} --save-plan there.json", "there.json: exists already; pass --force", **values)
    refused(
        "finetune {small} --data digits --epochs 1 -o there.safetensors", "exists already; pass --force", **values
    )
    refused("export {small} -o there.onnx", "there.onnx: exists already; pass --force", **values)
    refused(COMPRESS + "{weights} -o there", "there: exists already; pass --force", **values)


def test_outputs_that_cannot_be(refused: Refused, small: Path) -> None:
    values = {"small": small, "weights": DIGITS_WEIGHTS}
    refused(CONVERT + "{weights} -o out.pth", "out.pth: a compressed checkpoint is a .safetensors file", **values)
    refused(CONVERT + "{weights} -o no/out.safetensors", "the folder no does not exist", **values)
    refused(
        CONVERT + "{weights} --save-plan out.safetensors",
        "out.safetensors: is the file of another output, too",
        **values,
    )
    refused("export {small} -o out.bin", "out.bin: an ONNX file is named .onnx", **values)
    refused("export {small} -o no/out.onnx", "the folder no does not exist", **values)
    refused(COMPRESS + "{weights} -o no/out", "no/out: the folder no does not exist", **values)
    for folder in (".", "..", "/"):
        refused(
            COMPRESS + f"{{weights}} --force -o {folder}", f"{folder}: is not a folder's name; give one", **values
        )


def test_no_output_is_an_input(refused: Refused, tmp_path: Path, small: Path, digits_npz: Callable[..., str]) -> None:
    shutil.copy(small, tmp_path / "small.safetensors")
    shutil.copy(DIGITS_WEIGHTS, tmp_path / "weights.safetensors")
    (tmp_path / "plan.json").write_text("{}")
    (tmp_path / "linked.json").symlink_to("data.npz")
    Path(digits_npz([0, 1]).removeprefix("npz:")).rename(tmp_path / "data.npz")
    convert = "convert digits_cnn --checkpoint weights.safetensors --force "
    refused(convert + "--budget macs=0.5 -o weights.safetensors", "weights.safetensors: is read as an input, too")
    refused(convert + "--plan plan.json -o out.safetensors --save-plan plan.json", "plan.json: is read as an input")
    refused(
        convert + "--budget macs=0.5 --calibrate npz:data.npz -o out.safetensors --save-plan linked.json",
        "linked.json: is read as an input, too",
    )
    refused(
        "finetune small.safetensors --data digits --epochs 1 --force -o small.safetensors", "is read as an input, too"
    )
    refused(
        "plan digits_cnn --checkpoint weights.safetensors --budget macs=0.5 --force -o weights.safetensors",
        "is read as an input, too",
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_no_output_is_a_device_or_a_fifo(refused: Refused, tmp_path: Path, small: Path) -> None:
    os.mkfifo(tmp_path / "fifo.onnx")
    (tmp_path / "null.safetensors").symlink_to("/dev/null")
    refused("export {small} --force -o fifo.onnx", "fifo.onnx: is a device, a FIFO or a socket", small=small)
    refused(
        CONVERT + "{weights} --force -o null.safetensors", "null.safetensors: is a device", weights=DIGITS_WEIGHTS
    )


def test_outputs_are_checked_before_anything_is_read(refused: Refused) -> None:
    refused("convert digits_cnn --checkpoint gone.pth --budget macs=0.5 -o out.pth", "out.pth: a compressed")
    refused(
        "compress digits_cnn --checkpoint gone.pth --data digits --budget macs=0.5 --epochs 1 -o no/out", "no/out: "
    )
    refused("finetune gone.safetensors --data digits --epochs 1 -o no/out.safetensors", "no/out.safetensors: ")


def test_force_spares_other_peoples_files(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "plan.json").write_text("mine")
    (tmp_path / "file").write_text("mine")
    command = COMPRESS + "{weights} --force -o "
    refused(command + "thesis", "thesis: holds chapter.txt, which dprp did not write", weights=DIGITS_WEIGHTS)
    refused(command + "half", "half: has no summary.json, so it is not dprp's", weights=DIGITS_WEIGHTS)
    refused(command + "file", "file: is no folder", weights=DIGITS_WEIGHTS)
    refused("demo -o thesis", "thesis: holds something else than an earlier demo's files; pass -o")
