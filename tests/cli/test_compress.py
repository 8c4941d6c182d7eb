"""The whole chain on the digits network."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from dprp.converter import OptionError, Plan, Unit, load_compressed
from dprp.converter.chain.folder import made_whole
from dprp.converter.chain.network import build_plain
from dprp.converter.chain.summary import Figures, Summary, remarks
from dprp.converter.cli import compress as module
from dprp.converter.cli.compress import compress
from dprp.converter.cli.verbs import CompressOptions
from dprp.export import ExportError, onnx_macs, read_metadata
from dprp.models import DIGITS_WEIGHTS

FILES = ["compressed.onnx", "compressed.safetensors", "dense.onnx", "plan.json", "recipe.yaml", "summary.json"]
START = (
    "compress",
    "digits_cnn",
    "--checkpoint",
    DIGITS_WEIGHTS,
    "--data",
    "digits",
    "--budget",
    "macs=0.5",
    "--sensitivity",
    "mixed",  # without trials, which take as long as all else here
    "--polish",
    0,
)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_whole_chain(dprp: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    run = dprp(*START, "--epochs", 1, "--batch-size", 64, "--seed", 3, "-o", folder, "--json")
    told = run.json()
    assert _names(tmp_path) == ["out", "out.run"]
    assert _names(tmp_path / "out.run") == ["config.json", "history.jsonl", "plan.json", "ranks.png", "recipe.yaml"]
    assert _names(folder) == FILES
    assert json.loads((folder / "summary.json").read_text()) == told
    assert (told["model"], told["budget"], told["epochs"], told["seed"]) == ("digits_cnn", "macs=0.5", 1, 3)
    assert {"python", "torch", "onnxruntime", "dprp"} <= set(told["versions"])

    plan = Plan.from_json((folder / "plan.json").read_text())
    assert plan == load_compressed(folder / "compressed.safetensors", build_plain).plan
    assert 0.45 < plan.fraction(Unit.MACS) <= 0.5
    for name in ("dense", "compressed"):
        figures, file = told[name], folder / f"{name}.onnx"
        assert set(figures) == {field.name for field in fields(Figures)}
        assert figures["onnx_bytes"] == file.stat().st_size
        assert figures["macs"] == onnx_macs(file)
        assert 0 < figures["median_ms"] <= figures["p90_ms"]
        assert dprp("evaluate", file, "--data", "digits", "--json").json() == {"top1": figures["top1"], "images": 500}
    assert told["dense"]["params"] == 177_290
    assert told["compressed"]["params"] == plan.total(Unit.PARAMS) < 177_290
    assert told["dense"]["top1"] > 98
    assert told["compressed"]["top1"] > 95
    assert told["max_rel_error"] < 1e-4
    assert json.loads(read_metadata(folder / "compressed.onnx")["dprp.labels"]) == list("0123456789")
    assert "block3.conv" in run.err
    assert "fine-tun" in run.err

    table = dprp("benchmark", folder / "dense.onnx", folder / "compressed.onnx", "--rounds", 1).out
    assert "dense.onnx" in table
    assert "compressed.onnx" in table
    assert dprp("export", folder / "compressed.safetensors", "-o", tmp_path / "again.onnx").code == 0


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    """A run without fine-tuning, through the Python function; not to be written to."""
    return compress(
        CompressOptions(
            model="digits_cnn",
            checkpoint=DIGITS_WEIGHTS,
            data="digits",
            budget="params=0.5",
            epochs=0,
            polish=0,
            forms=("channel",),
            keep=("head",),
            output=tmp_path_factory.mktemp("done") / "out",
            quiet=True,
        )
    )


def test_files_of_8_bits_beside_them(dprp: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    told = dprp(*START, "--epochs", 0, "--calibration-images", 200, "--int8", "-o", folder, "--json").json()
    assert _names(folder) == sorted([*FILES, "compressed-int8.onnx", "dense-int8.onnx"])
    found = told["int8"]
    names = ["dense.onnx", "compressed.onnx", "dense-int8.onnx", "compressed-int8.onnx"]
    assert [file["file"] for file in found["files"]] == names
    dense, compressed, dense_int8, int8 = found["files"]
    assert int8["size_bytes"] < min(compressed["size_bytes"], dense_int8["size_bytes"])
    assert abs(int8["top1"] - compressed["top1"]) < 3.0
    assert dense["top1"] == told["dense"]["top1"]
    assert len(found["quantized"]) == 2
    assert json.loads((folder / "summary.json").read_text()) == told
    assert found["notes"] == [note for note in told["notes"] if note in found["notes"]]
    for name in ("compressed.onnx", "compressed-int8.onnx"):  # its ranges differ from the checkpoint's
        verified = dprp("verify", folder / "compressed.safetensors", folder / name, "--data", "digits")
        assert verified.code == 0, verified.out


def test_python_function(done: Summary) -> None:
    assert 0.45 < done.compressed.params / done.dense.params <= 0.5
    assert json.loads((done.folder / "summary.json").read_text()) == done.to_dict()
    plan = Plan.from_json((done.folder / "plan.json").read_text())
    assert {str(layer.form) for layer in plan.factored.values()} == {"channel"}
    assert "head" not in plan.factored


def test_force_replaces_an_earlier_run_and_only_that(dprp: Any, tmp_path: Path, done: Summary) -> None:
    """Without epochs the chain stops after conversion; the table says all that the summary holds."""
    folder = tmp_path / "out"
    shutil.copytree(done.folder, folder)
    command = (*START, "--epochs", 0, "-o", folder)
    assert dprp(*command).code == 2
    assert (folder / "summary.json").read_bytes() == (done.folder / "summary.json").read_bytes()
    run = dprp(*command, "--seed", 1, "--force")
    assert run.code == 0
    assert "fine-tun" not in run.err
    told = json.loads((folder / "summary.json").read_text())
    assert (told["seed"], told["budget"], told["epochs"]) == (1, "macs=0.5", 0)
    assert 0.45 < told["compressed"]["macs"] / told["dense"]["macs"] <= 0.5
    assert _names(tmp_path) == ["out"]
    assert _names(folder) == FILES
    for text in (
        f"{told['dense']['top1']:.2f} %",
        f"{told['compressed']['top1']:.2f} %",
        f"{told['compressed']['params']:,}",
        f"{told['compressed']['macs']:,}",
        f"{told['compressed']['onnx_bytes']:,}",
        f"{told['compressed']['median_ms']:.3f}",
        f"{told['speedup']:.2f} x",
        f"files in {folder}\n",
    ):
        assert text in run.out
    assert "\x1b" not in run.out + run.err

    (folder / "notes.txt").write_text("mine")
    refused = dprp(*command, "--force")
    assert refused.code == 2
    assert "holds notes.txt" in refused.err
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(("error", "code"), [(ExportError("a file that differs"), 2), (KeyboardInterrupt(), 130)])
def test_a_failure_half_way_leaves_nothing(
    dprp: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(_network: object, path: Path, *_: object, **__: object) -> None:
        path.write_text("half")
        raise error

    monkeypatch.setattr(module, "export_network", fail)
    run = dprp(*START, "--epochs", 0, "-o", tmp_path / "out")
    assert run.code == code
    assert run.err.splitlines()[-1] == f"dprp: {str(error) or 'interrupted'}"
    assert run.out == ""
    assert _names(tmp_path) == []

    old = _older_result(tmp_path / "out")
    assert dprp(*START, "--epochs", 0, "-o", tmp_path / "out", "--force").code == code
    assert _names(tmp_path) == ["out"]
    assert {(tmp_path / "out" / name).read_text() for name in FILES} == {old}


def _older_result(folder: Path) -> str:
    """A folder as an earlier run left it; returns the text of each of its files."""
    folder.mkdir()
    text = json.dumps({"made_by": "compress", "result_id": "0" * 32})
    for name in FILES:
        (folder / name).write_text(text)
    return text


@pytest.mark.parametrize(
    "summary", ["mine", "{}", '{"model": "digits_cnn"}', '{"made_by": "compress", "result_id": 1}']
)
@pytest.mark.parametrize("verb", ["compress", "demo"])
def test_a_folder_of_ones_own_is_never_replaced(dprp: Any, tmp_path: Path, summary: str, verb: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "summary.json").write_text(summary)
    command = (*START, "--epochs", 0, "--force") if verb == "compress" else ("demo",)
    run = dprp(*command, "-o", tmp_path / "out")
    assert run.code == 2
    assert "not dprp's" in run.err or "something else than an earlier demo's" in run.err
    assert (tmp_path / "out" / "summary.json").read_text() == summary


def test_the_demo_replaces_no_result_of_compress(dprp: Any, tmp_path: Path) -> None:
    text = _older_result(tmp_path / "out")
    assert dprp("demo", "-o", tmp_path / "out").code == 2
    assert (tmp_path / "out" / "summary.json").read_text() == text


@pytest.mark.parametrize("fails", [0, 1])
def test_an_interrupt_at_either_rename_keeps_the_older_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    text = _older_result(tmp_path / "out")
    monkeypatch.setattr("dprp.converter.chain.folder.exchanged", lambda _one, _other: False)  # as on a Mac
    renames = 0
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        nonlocal renames
        renames += 1
        if renames == fails + 1:
            raise KeyboardInterrupt
        return rename(self, target)

    with pytest.raises(KeyboardInterrupt), made_whole(tmp_path / "out", force=True) as work:  # noqa: PT012
        (work / "summary.json").write_text("new")
        monkeypatch.setattr(Path, "rename", interrupted)
    assert _names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "summary.json").read_text() == text


KILLED = """
import os, sys
from pathlib import Path
from dprp.converter.chain import folder
rename, renames = Path.rename, 0
def killed(self, target):
    global renames
    renames += 1
    if renames > int(sys.argv[2]):
        os.kill(os.getpid(), 9)
    return rename(self, target)
folder.exchanged = lambda one, other: False  # as on a Mac
with folder.made_whole(Path(sys.argv[1]), force=True) as work:
    (work / "summary.json").write_text("new")
    Path.rename = killed
"""


@pytest.mark.parametrize("renames", [0, 1])
def test_the_next_run_mends_what_a_killed_one_left(tmp_path: Path, renames: int) -> None:
    text = _older_result(tmp_path / "out")
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "out", str(renames)], check=False)
    assert done.returncode == -9
    assert len(_names(tmp_path)) == (1 if renames else 2)  # the older result is in the temporary folder, or beside it
    with pytest.raises(OptionError, match="exists already"), made_whole(tmp_path / "out", force=False):
        pass
    assert _names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "summary.json").read_text() == text


def test_a_run_that_goes_on_is_not_taken_for_a_killed_one(tmp_path: Path) -> None:
    with made_whole(tmp_path / "out", force=False) as one:
        (one / "summary.json").write_text("one")
        with made_whole(tmp_path / "out", force=False) as other:
            (other / "summary.json").write_text(json.dumps({"made_by": "compress", "result_id": "1" * 32}))
        assert (one / "summary.json").read_text() == "one"
        shutil.rmtree(tmp_path / "out")
    assert (tmp_path / "out" / "summary.json").read_text() == "one"


def test_a_bug_is_not_hidden(dprp: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(module, "export_network", fail)
    with pytest.raises(ValueError, match="a bug"):
        dprp(*START, "--epochs", 0, "-o", tmp_path / "out")
    assert _names(tmp_path) == []


def test_no_gain_is_said_plainly() -> None:
    dense = Figures(90.0, 100, 100, 100, 1.0, 1.0, 1000.0, None)
    assert remarks(dense, Figures(90.0, 50, 50, 60, 0.5, 0.5, 2000.0, None), 2.0) == []
    slower, larger = remarks(dense, Figures(90.0, 90, 50, 100, 1.1, 1.2, 909.0, None), 0.91)
    assert "not faster here (0.91 x the dense speed)" in slower
    assert "not smaller" in larger
