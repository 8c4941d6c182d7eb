"""Two processes train what one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from .several import train

ROOT = Path(__file__).parents[3]


def together(folder: Path, *arguments: object, processes: int = 2) -> list[dict[str, Any]]:
    """What each process came to."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"),
            *("-m", "tests.converter.training.several", str(folder)),
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(file, weights_only=True) for file in sorted(folder.glob("*.pt"))]


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    one = train(1)
    first, second = together(tmp_path)
    assert first["ranks"] == second["ranks"] == one["ranks"]
    assert first["losses"] == second["losses"]
    assert first["losses"] == pytest.approx(one["losses"], abs=1e-4)
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])
    assert first["scores"] == second["scores"]
    assert first["scores"][-1] == pytest.approx(first["score"])


def test_two_processes_go_on_as_if_they_had_not_been_stopped(tmp_path: Path) -> None:
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = together(tmp_path / "whole")
    assert together(tmp_path / "cut", "--die-after", 4) == []
    for one, other in zip(whole, together(tmp_path / "cut", "--resume"), strict=True):
        assert all(torch.equal(one["weights"][name], other["weights"][name]) for name in one["weights"])
        assert one["losses"][4:] == other["losses"]
