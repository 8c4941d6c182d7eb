"""Two names change places at once, or nothing happens."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dprp.files.exchange import exchanged


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges names")
def test_folders_change_places(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    if not exchanged(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange names")
    assert (tmp_path / "a" / "file").read_text() == "b"
    assert (tmp_path / "b" / "file").read_text() == "a"


def test_what_cannot_be_exchanged_stays(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert not exchanged(tmp_path / "a", tmp_path / "gone")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
