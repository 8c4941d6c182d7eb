"""Only regular files of a sane size are read, and whatever they hold becomes one sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dprp.files import check_input, quoted, reading


class Refusal(ValueError):
    """What the caller wants raised."""


def refuses(path: Path, message: str, largest: int = 10) -> None:
    with pytest.raises(Refusal, match=message):
        check_input(path, error=Refusal, largest=largest, what="a plan")


def test_what_is_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").touch()
    Path("large").write_bytes(b"01234567890")
    Path("right").write_bytes(b"0123456789")
    refuses(Path("gone"), "^gone: no such file; check the path, or give that of a plan$")
    refuses(Path(), r"^\.: is a folder; give the path of a plan$")
    refuses(Path("empty"), "^empty: the file is empty")
    refuses(Path("large"), "^large: has 11 bytes, a plan has at most 10; check the path$")
    refuses(Path("/dev/zero"), "^/dev/zero: is not a regular file")
    refuses(Path("x" * 300), "^x{199}…: cannot be read")
    check_input(Path("right"), error=Refusal, largest=10)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    refuses(tmp_path / "fifo", "is not a regular file")
    refuses(tmp_path / "link", "is not a regular file")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("rank"), r"a: does not read \(has no 'rank'\); write the file anew"),
        (TypeError("int is no list"), r"a: does not read \(int is no list\)"),
        (OverflowError("too large"), r"a: does not read \(too large\)"),
        (ZeroDivisionError(), r"a: does not read \(ZeroDivisionError\)"),
        (MemoryError(), "a: claims more than this machine's memory"),
        (RecursionError(), "a: is nested too deeply"),
        (OSError(5, "Input/output error"), r"a: cannot be read \(Input/output error\)"),
        (ValueError("x" * 1000), r"a: does not read \(x{199}…\)"),
        (Refusal("as it is"), "^as it is$"),
    ],
)
def test_what_content_provokes_becomes_a_sentence(error: Exception, message: str) -> None:
    with pytest.raises(Refusal, match=message), reading(Path("a"), error=Refusal):
        raise error


def test_a_nested_document_is_a_sentence() -> None:
    with pytest.raises(Refusal, match="nested too deeply"), reading(Path("a"), error=Refusal):
        json.loads("[" * 200_000)


def test_quoted_text_is_one_short_printable_line() -> None:
    assert quoted("a\n b\x1b[31m") == "a b?[31m"
    assert quoted("x" * 10_000) == "x" * 199 + "…"
    assert quoted(["a"]) == "['a']"
