"""Fine-tuning that is interrupted, and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dprp.converter.chain.network import build_plain
from dprp.converter.storage.checkpoint import load_compressed
from dprp.converter.training.progress import FinetuneBar
from dprp.converter.training.record import Step
from dprp.models import DIGITS_WEIGHTS

from .conftest import Dprp


def interrupted_at(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Ctrl-C after a step."""
    shown = FinetuneBar.show

    def show(bar: FinetuneBar, step: Step) -> None:
        shown(bar, step)
        if step.step == at:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(FinetuneBar, "show", show)


def test_ctrl_c_saves_and_says_how_to_go_on(
    dprp: Dprp, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = ("--data", "digits", "--epochs", 2, "--budget", "macs=0.4", "--device", "cpu")
    whole = dprp("finetune", small, *usual, "-o", tmp_path / "whole.safetensors", "--json").json()
    with monkeypatch.context() as patched:
        interrupted_at(patched, 13)
        run = dprp("finetune", small, *usual, "-o", tmp_path / "cut.safetensors")
    folder = tmp_path / "cut.run"
    assert run.code == 130
    assert run.err.endswith(f"the run is saved; go on with: dprp finetune --resume {folder}\ndprp: interrupted\n")
    assert not (tmp_path / "cut.safetensors").exists()
    again = dprp("finetune", small, *usual, "-o", tmp_path / "cut.safetensors")
    assert again.code == 2
    assert "cut.run: holds a run that has not ended; go on with --resume (resume=True), or pass --force" in again.err
    other = dprp("finetune", "--resume", folder, "--lr", 0.5)
    assert other.code == 2
    assert "its learning_rate was 0.01, now it is 0.5; go on with what it was begun with" in other.err
    folder = folder.rename(tmp_path / "moved.run")
    told = dprp("finetune", "--resume", folder, "--json").json()
    assert {**told, "output": ""} == {**whole, "output": ""}
    first, second = (
        load_compressed(tmp_path / f"{name}.safetensors", build_plain).model.state_dict() for name in ("whole", "cut")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "history.jsonl",
        "plan.json",
        "ranks.png",
        "recipe.yaml",
    ]
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 23))
    assert sum("cut" in line for line in lines) > 3
    ended = dprp("finetune", "--resume", folder, "--force")
    assert ended.code == 2
    assert "moved.run: has no state to go on from: its run has ended" in ended.err


def test_runs_elsewhere_or_nowhere(dprp: Dprp, small: Path, tmp_path: Path) -> None:
    usual = ("finetune", small, "--data", "digits", "--epochs", 1, "--device", "cpu", "--quiet")
    assert dprp(*usual, "-o", tmp_path / "a.safetensors", "--save-every", 0).code == 0
    assert dprp(*usual, "-o", tmp_path / "b.safetensors", "--run", tmp_path / "mine").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors", "mine"]
    for more, says in (
        (("--save-every", 0, "--run", tmp_path / "x"), "names its folder; leave one of them out"),
        (("--run", tmp_path), "is no folder of a run (config.json: "),
        (("--resume", tmp_path), "recipe.yaml: no such file"),
    ):
        run = dprp(*usual, "-o", tmp_path / "c.safetensors", *more)
        assert run.code == 2
        assert says in run.err
    assert not (tmp_path / "c.safetensors").exists()


def test_several_processes_are_one_command(small: Path, tmp_path: Path) -> None:
    def started(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
                *("-m", "dprp.cli", *map(str, arguments)),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    run = started(
        "finetune",
        small,
        *("--data", "digits", "--epochs", 1, "--budget", "macs=0.4", "--device", "cpu"),
        *("-o", "two.safetensors", "--batch-size", 64, "--json"),
    )
    assert run.returncode == 0, run.stderr[-3000:]
    told = json.loads(run.stdout)
    assert told["macs"]["part"] <= 0.4
    assert told["images"] == 500
    assert run.stderr.count("fine-tuning ") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two.run", "two.safetensors"]
    lines = (tmp_path / "two.run" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 12))  # 1,297 images in two times 64


def test_compress_goes_on_too(dprp: Dprp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = ("compress", "digits_cnn", "--checkpoint", DIGITS_WEIGHTS, "--data", "digits", "--budget", "macs=0.4")
    planned = ("--calibration-images", 200, "--sensitivity", "mixed")
    more = ("--epochs", 2, "--headroom", 1.5, *planned, "--device", "cpu", "--quiet")
    whole = dprp(*usual, *more, "-o", tmp_path / "whole", "--json").json()
    with monkeypatch.context() as patched:
        interrupted_at(patched, 13)
        run = dprp(*usual, *more, "-o", tmp_path / "cut-0.4")
    assert run.code == 130
    assert f"the run is saved; go on with: dprp compress --resume {tmp_path / 'cut-0.4.run'}\n" in run.err
    assert not (tmp_path / "cut-0.4").exists()
    told = dprp("compress", "--resume", tmp_path / "cut-0.4.run", "--json").json()
    assert told["compressed"]["top1"] == whole["compressed"]["top1"]
    first, second = (
        load_compressed(tmp_path / name / "compressed.safetensors", build_plain).model.state_dict()
        for name in ("whole", "cut-0.4")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert "resume" not in (tmp_path / "cut-0.4" / "recipe.yaml").read_text()
    assert (tmp_path / "cut-0.4.run" / "ranks.png").is_file()
