"""Three hundred hostile files; `python -m tests.fuzz` reads thousands."""

from __future__ import annotations

from pathlib import Path

import pytest

from .cases import Fuzzer


@pytest.mark.parametrize("kind", ["compressed", "foreign", "plan"])
def test_hostile_files_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    fuzzer = Fuzzer(tmp_path)
    outcomes = {case: fuzzer.run(kind, case) for case in range(100)}
    assert {case: outcome.verdict for case, outcome in outcomes.items() if outcome.violated} == {}
    assert {outcome.verdict for outcome in outcomes.values()} == {"read", "refused"}
