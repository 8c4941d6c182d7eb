"""A user's mistake: one sentence, exit code 2, nothing written."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dprp.models import DIGITS_WEIGHTS, build

from .conftest import COMPRESS, CONVERT, Refused


class _Code:
    """A pickle that makes a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("command", [COMPRESS, CONVERT, "evaluate digits_cnn --data digits --checkpoint "])
def test_no_such_checkpoint(refused: Refused, command: str) -> None:
    refused(command + "gone.pth", "gone.pth: no such file")


@pytest.mark.parametrize("verb", ["survey", "evaluate --data digits", "export -o out.onnx"])
def test_no_such_compressed_file(refused: Refused, verb: str) -> None:
    name, *options = verb.split()
    refused(" ".join([name, "gone.safetensors", *options]), "gone.safetensors: no such file")


@pytest.mark.parametrize("command", ["evaluate gone.onnx --data digits", "benchmark gone.onnx"])
def test_no_such_onnx_file(refused: Refused, command: str) -> None:
    refused(command, "gone.onnx: no such file")


@pytest.mark.parametrize("command", [COMPRESS, CONVERT])
def test_truncated_checkpoint(refused: Refused, tmp_path: Path, command: str) -> None:
    whole = tmp_path / "whole.pth"
    torch.save(build("digits_cnn").state_dict(), whole)
    (tmp_path / "cut.pth").write_bytes(whole.read_bytes()[:20_000])
    refused(command + "cut.pth", "cut.pth: the file is truncated or corrupt")


@pytest.mark.parametrize(
    "command", ["survey cut.safetensors", "finetune cut.safetensors --data digits --epochs 1 -o o.safetensors"]
)
def test_truncated_compressed_file(refused: Refused, tmp_path: Path, small: Path, command: str) -> None:
    (tmp_path / "cut.safetensors").write_bytes(small.read_bytes()[:-1000])
    refused(command, "cut.safetensors: does not read as safetensors")


@pytest.mark.parametrize("command", ["evaluate cut.onnx --data digits", "benchmark cut.onnx"])
def test_truncated_onnx_file(refused: Refused, tmp_path: Path, onnx: Path, command: str) -> None:
    (tmp_path / "cut.onnx").write_bytes(onnx.read_bytes()[:1000])
    refused(command, "cut.onnx: ")


@pytest.mark.parametrize("command", [COMPRESS, CONVERT])
def test_checkpoint_of_another_architecture(refused: Refused, tmp_path: Path, command: str) -> None:
    torch.save(build("cifar_resnet20").state_dict(), tmp_path / "other.pth")
    refused(command + "other.pth", "other.pth: the checkpoint does not fit the model", "missing (block1.conv.weight")


@pytest.mark.parametrize("command", [COMPRESS, CONVERT])
def test_pickle_that_would_run_code(refused: Refused, tmp_path: Path, command: str) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"state_dict": _Code(marker)}))
    refused(command + "evil.pth", "evil.pth: the file holds code")
    assert not marker.exists()


def test_the_pickle_above_would_have_run_code(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps({"state_dict": _Code(marker)}))
    assert marker.exists()


@pytest.mark.parametrize("part", ["0", "1.5", "-0.5", "nan"])
@pytest.mark.parametrize("unit", ["macs", "params"])
def test_budget_out_of_range(refused: Refused, unit: str, part: str) -> None:
    command = "compress digits_cnn --data digits --epochs 0 -o out --checkpoint {weights} --budget {unit}={part}"
    refused(command, "budget {unit}", "{part} is not in (0, 1]", weights=DIGITS_WEIGHTS, unit=unit, part=part)


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ("flops=0.5", "'flops=0.5' is not UNIT=FRACTION with unit macs, params or latency"),
        ("0.5", "'0.5' is not UNIT=FRACTION"),
        ("macs=half", "'half' is not a number"),
    ],
)
def test_budget_that_does_not_read(refused: Refused, budget: str, says: str) -> None:
    refused("convert digits_cnn -o o.safetensors --checkpoint x --budget {budget}", says, budget=budget)
    refused("finetune x.safetensors --data digits --epochs 1 -o o.safetensors --budget {budget}", says, budget=budget)


def test_budget_that_cannot_be_reached(refused: Refused) -> None:
    command = "compress digits_cnn --data digits --epochs 0 -o out --checkpoint {weights} --budget macs=0.001"
    refused(command, "cannot be reached: with every layer at its smallest rank 0.0", weights=DIGITS_WEIGHTS)


def test_empty_data_folder(refused: Refused, tmp_path: Path, small: Path) -> None:
    (tmp_path / "images").mkdir()
    refused("evaluate {small} --data folder:images", "folder:images: has no folder train", small=small)
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir()
    refused(COMPRESS + "{weights} --data folder:images", "train needs one folder per class", weights=DIGITS_WEIGHTS)


@pytest.mark.parametrize("command", ["evaluate {file} --data {data}", COMPRESS + "{weights} --data {data}"])
def test_labels_outside_the_classes(
    refused: Refused, digits_npz: Callable[..., str], small: Path, command: str
) -> None:
    data = digits_npz([0, 3, 10])
    refused(command, "labels go up to 10, the model has 10 classes", file=small, data=data, weights=DIGITS_WEIGHTS)


def test_labels_outside_the_classes_of_an_onnx_file(
    refused: Refused, digits_npz: Callable[..., str], onnx: Path
) -> None:
    refused("evaluate {file} --data {data}", "label 10 is not in 0..9", file=onnx, data=digits_npz([0, 3, 10]))


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (
            "convert digits_cnn -o o.safetensors --checkpoint x",
            "none of --budget, --plan, --ratio, --rank and --energy",
        ),
        ("convert digits_cnn -o o.safetensors --checkpoint x --rank 4 --energy 0.9", "2 of --budget, --plan"),
        ("convert digits_cnn -o o.safetensors --rank 4", "digits_cnn: no weights given; pass --checkpoint FILE"),
        ("convert digits_cnn -o o.safetensors --rank 0", "rank 0 is below 1"),
        ("convert digits_cnn -o o.safetensors --ratio 2", "ratio=2 is not in (0, 1]"),
        ("convert digits_cnn -o o.safetensors --rank 4 --random-weights --keep head2", "'head2' matches no layer"),
        ("convert digits_cnn -o o.safetensors --rank 4 --random-weights --form cp", "'cp' is not one of 'channel'"),
        ("convert digits_cnn -o o.safetensors --rank 4 --random-weights --checkpoint x", "exclude each other"),
        ("convert {small} -o o.safetensors --rank 4", "MODEL is compressed already; start from the dense network"),
        ("convert digits_cnn -o o.safetensors --plan gone.json --checkpoint x", "gone.json: no such file"),
        ("survey digits_cn", "digits_cn: no such architecture"),
        ("survey digits_cnn --input 8x8", "--input '8x8' is not CHANNELSxHEIGHTxWIDTH"),
        ("survey digits_cnn --input 1x0x8", "--input '1x0x8' is not CHANNELSxHEIGHTxWIDTH"),
        ("survey digits_cnn --input 3x8x8", "cannot take an input of shape (1, 3, 8, 8)"),
        ("survey {onnx}", "an ONNX file has no layers to work on"),
        ("survey resnet20.th", "is a checkpoint, not a model; give the model's name and --checkpoint resnet20.th"),
        ("survey {small} --classes 3", "brings its own weights and input; leave --classes out"),
        ("survey json:loads --input 1x8x8", "json:loads: the function raised"),
        ("evaluate {small} --data digit", "'digit': unknown data"),
        ("evaluate {small} --data digits --mean a,b", "--mean 'a,b' is not a list of numbers"),
        ("evaluate digits_cnn --random-weights --data digits --std 0", "each value must be above 0"),
        ("evaluate {onnx} --data digits --checkpoint x", "brings its own weights; leave --checkpoint"),
        ("evaluate {onnx} --data digits --device cuda", "--device cuda"),
        ("benchmark {onnx} --device cuda", "on the CPU"),
        ("finetune digits_cnn --data digits --epochs 1 -o o.safetensors", "is not a compressed .safetensors"),
        ("finetune {small} --data digits --epochs 0 -o o.safetensors", "epochs 0 is below 1"),
        ("finetune {small} --data digits --epochs 1 -o o.safetensors --lr 0", "learning rate 0 is not above 0"),
        (
            "finetune {small} --data digits --epochs 1 -o o.safetensors --threshold 0.1 --budget macs=0.5",
            "a budget and a threshold are two ways",
        ),
        ("compress digits_cnn --data digits --budget macs=0.5 --epochs -1 -o out", "epochs -1 is below 0"),
        ("compress digits_cnn --data digits --epochs 1 -o out", "Missing option '--budget'"),
        ("benchmark {onnx} --threads 0", "--threads"),
        ("export", "Missing argument 'FILE_OR_MODEL'"),
        ("compres", "No such command 'compres'"),
    ],
)
def test_options(refused: Refused, small: Path, onnx: Path, command: str, says: str) -> None:
    refused(command, says, small=small, onnx=onnx)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu(refused: Refused) -> None:
    refused("survey digits_cnn --device cuda", "--device cuda: torch finds no GPU")


@pytest.mark.parametrize(
    "verb",
    [
        "survey {file}",
        "evaluate {file} --data digits",
        "export {file} -o new.onnx",
        "finetune {file} --data digits --epochs 1 -o new.safetensors",
        "convert {file} -o new.safetensors --rank 4",
        "plan {file} --rank 4",
        "compress {file} --data digits --budget macs=0.5 --epochs 1 -o new",
    ],
)
def test_a_file_that_names_code_runs_none(
    dprp: Any, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """`os:abort` would end this very process."""
    with safe_open(small, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata["source"] = json.dumps(json.loads(metadata["source"]) | {"model": "os:abort"})
    monkeypatch.chdir(tmp_path)
    evil = tmp_path / "evil.safetensors"
    save_file(tensors, evil, metadata)
    run = dprp(*verb.format(file=evil).split())
    assert run.code == 2
    assert "is built by os:abort, which would be imported and called" in run.err or "compressed already" in run.err
    assert sorted(tmp_path.iterdir()) == [evil]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--seed -1", "--seed"),
        ("--seed 9223372036854775808", "--seed"),
        ("--batch-size 70000", "--batch-size"),
        ("--input 3x99999x3", "--input '3x99999x3' is too large; sides are 1..65,536"),
        ("--input 3x60000x60000", "is too large"),
        (f"--input 3x{'9' * 5000}x3", "is not CHANNELSxHEIGHTxWIDTH"),
    ],
)
def test_numbers_that_make_no_sense(refused: Refused, arguments: str, says: str) -> None:
    refused(f"evaluate digits_cnn --random-weights --data digits {arguments}", says)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="FIFOs are a thing of POSIX")
@pytest.mark.parametrize(
    "arguments",
    [
        "convert digits_cnn --random-weights --plan {fifo} -o out.safetensors",
        "survey {fifo}.safetensors",
        "convert {fifo}.safetensors --rank 4 -o out.safetensors",
        "evaluate digits_cnn --checkpoint {fifo}.pth --data digits",
        "evaluate {fifo}.onnx --data digits",
        "evaluate digits_cnn --random-weights --data npz:{fifo}.npz",
    ],
)
def test_a_fifo_is_refused_and_not_waited_for(refused: Refused, tmp_path: Path, arguments: str) -> None:
    for suffix in ("", ".safetensors", ".pth", ".onnx", ".npz"):
        os.mkfifo(tmp_path / f"pipe{suffix}")
    refused(arguments, fifo="pipe")


def test_a_plan_of_endless_length_is_not_read(refused: Refused) -> None:
    refused(
        "convert digits_cnn --random-weights --plan /dev/zero -o o.safetensors", "/dev/zero: is not a regular file"
    )
