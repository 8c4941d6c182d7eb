"""Three hundred hostile files, and three runs that are killed; `python -m tests.fuzz` reads thousands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .cases import Fuzzer


@pytest.mark.parametrize("kind", ["compressed", "foreign", "plan"])
def test_hostile_files_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    fuzzer = Fuzzer(tmp_path)
    outcomes = {case: fuzzer.run(kind, case) for case in range(100)}
    assert {case: outcome.verdict for case, outcome in outcomes.items() if outcome.violated} == {}
    assert {outcome.verdict for outcome in outcomes.values()} == {"read", "refused"}


def test_runs_that_are_killed_end_as_if_they_had_not_been() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.resumes", "--times", "3"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 of them ended otherwise" in done.stdout
