"""`dprp plan`, and calibration from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dprp.converter import Plan
from dprp.models import DIGITS_WEIGHTS


def test_a_plan_is_shown_written_and_taken_back(dprp: Any, tmp_path: Path) -> None:
    file, small = tmp_path / "plan.json", tmp_path / "small.safetensors"
    options = ("digits_cnn", "--checkpoint", DIGITS_WEIGHTS)
    told = dprp("plan", *options, "--budget", "macs=0.5", "-o", file, "--json").json()
    assert told["macs"]["part"] <= 0.5
    assert set(told["layers"]) | set(told["dense"]) == {
        "block1.conv",
        "block2.conv",
        "block3.conv",
        "block4.conv",
        "head",
    }
    assert all(told["dense"].values())
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    document = json.loads(file.read_text())
    document["layers"][1] |= {"form": "spatial", "rank": 7}
    file.write_text(json.dumps(document))
    taken = dprp("convert", *options, "--plan", file, "-o", small, "--json").json()
    assert taken["layers"]["block2.conv"] == "spatial:7"
    table = dprp("plan", *options, "--budget", "macs=0.5").out
    assert "block2.conv" in table
    assert "% of MACs" in table


def test_calibration_keeps_accuracy(dprp: Any, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the digits data needs scikit-learn")
    top1 = {}
    for name, more in (
        ("plain", ()),
        ("calibrated", ("--calibrate", "digits", "--calibration-images", 400, "--polish", 0)),
    ):
        file = tmp_path / f"{name}.safetensors"
        budget = ("--budget", "macs=0.2", "--rank-multiple", 2)
        dprp("convert", "digits_cnn", "--checkpoint", DIGITS_WEIGHTS, *budget, *more, "-o", file, "--json").json()
        top1[name] = dprp("evaluate", file, "--data", "digits", "--json").json()["top1"]
    assert top1["calibrated"] > top1["plain"] + 5
    assert top1["calibrated"] > 85


def test_mistakes(dprp: Any, tmp_path: Path) -> None:
    options = ("plan", "digits_cnn", "--random-weights")
    file = tmp_path / "plan.json"
    file.write_text("mine")
    for arguments, message in (
        ((), "none of --budget, --plan, --ratio, --rank and --energy given"),
        (("--budget", "macs=2"), "budget macs=2 is not in (0, 1]"),
        (("--budget", "macs=0.5", "-o", file), "exists already; pass --force"),
        (("--budget", "macs=0.5", "--calibrate", "npz:gone.npz"), "gone.npz"),
        (("--budget", "macs=0.5", "--keep", "nothing"), "keep pattern 'nothing' matches no layer"),
    ):
        run = dprp(*options, *arguments)
        assert run.code == 2, run
        assert message in run.err
        assert run.err.count("\n") == 1
    assert file.read_text() == "mine"


def test_plan_file_reads_as_a_plan(dprp: Any, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    dprp("plan", "digits_cnn", "--random-weights", "--ratio", 0.25, "-o", file)
    assert Plan.from_json(file.read_text()).factored


def test_a_latency_plan_from_real_times(dprp: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = ("digits_cnn", "--checkpoint", DIGITS_WEIGHTS, "--budget", "latency=0.8")
    told = dprp("plan", *options, "--json").json()
    assert 0 < told["ms"]["compressed"] <= 0.8 * told["ms"]["dense"]
    assert told["layers"]
    (cached,) = (tmp_path / "cache" / "dprp" / "latency").iterdir()
    before = cached.read_bytes()
    assert " ms " in dprp("plan", *options).out
    assert cached.read_bytes() == before  # nothing was measured again
    run = dprp("finetune", "gone.safetensors", "--data", "digits", "--epochs", 1, "-o", tmp_path / "o.safetensors")
    assert run.code == 2
