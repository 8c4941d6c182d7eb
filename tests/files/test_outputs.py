"""A file comes whole or not at all, and never where something else than a file is."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from dprp.files import check_output, check_outputs, written_whole


class Refusal(ValueError):
    """What the caller wants raised."""


def write(path: Path, text: str = "new", *, force: bool = False) -> None:
    with written_whole(path, force=force, error=Refusal) as temporary:
        temporary.write_text(text)


def refuses(path: Path, message: str, *, force: bool = True) -> None:
    for refuse in (lambda: check_output(path, force=force, error=Refusal), lambda: write(path, force=force)):
        with pytest.raises(Refusal, match=message):
            refuse()


def test_new_and_replaced(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write(file)
    refuses(file, r"a\.txt: exists already; pass --force", force=False)
    write(file, "newer", force=True)
    assert file.read_text() == "newer"
    assert list(tmp_path.iterdir()) == [file]


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    refuses(tmp_path / "folder", "folder: is a folder")
    refuses(tmp_path / "gone" / "a", "the folder .*gone does not exist")
    refuses(tmp_path / ("x" * 201), "is no name for a file; give one of at most 200 bytes")
    refuses(tmp_path / "a\0b", "is no name for a file")
    refuses(Path("/dev/null"), "/dev/null: is a device, a FIFO or a socket")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_fifos_and_sockets_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's name may have a hundred characters
    os.mkfifo("fifo")
    refuses(Path("fifo"), "fifo: is a device, a FIFO or a socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        refuses(Path("socket"), "socket: is a device, a FIFO or a socket")


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "old").write_text("old")
    for name, goal in {"link": "old", "fresh": "there/new", "lost": "gone/new", "null": "/dev/null"}.items():
        (tmp_path / name).symlink_to(goal)
    refuses(tmp_path / "link", "link: exists already", force=False)
    write(tmp_path / "link", force=True)
    write(tmp_path / "fresh")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "old").read_text() == (tmp_path / "there" / "new").read_text() == "new"
    refuses(tmp_path / "lost", "lost: the folder .*gone does not exist")
    refuses(tmp_path / "null", "null: is a device")
    (tmp_path / "loop").symlink_to("loop")
    refuses(tmp_path / "loop", "loop: cannot be written")


def test_several_outputs_and_inputs_are_different_files(tmp_path: Path) -> None:
    old, linked, hard = tmp_path / "old", tmp_path / "linked", tmp_path / "hard"
    old.write_text("old")
    linked.symlink_to(old)
    os.link(old, hard)
    new = tmp_path / "new"

    def check(*outputs: Path | None, inputs: tuple[Path | str | None, ...] = ()) -> None:
        check_outputs(*outputs, inputs=inputs, force=True, error=Refusal)

    check(old, new, None, inputs=(None, "resnet18", tmp_path / "other"))
    for outputs in ((new, tmp_path / "there" / ".." / "new"), (old, linked), (old, hard)):
        with pytest.raises(Refusal, match="is the file of another output"):
            check(*outputs)
    for output in (old, linked, hard):
        with pytest.raises(Refusal, match="is read as an input, too"):
            check(new, output, inputs=(str(old),))


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("old")

    def fail(error: BaseException) -> None:
        with written_whole(file, force=True, error=Refusal) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(Refusal, match=r"a: cannot be written \(No space left on device\); nothing was changed"):
        fail(OSError(28, "No space left on device"))
    with pytest.raises(KeyboardInterrupt):
        fail(KeyboardInterrupt())
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_who_comes_first_is_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "a"

    def come_second() -> None:
        with written_whole(file, force=False, error=Refusal) as temporary:
            temporary.write_text("second")
            file.write_text("first")

    with pytest.raises(Refusal, match="exists already"):
        come_second()
    assert file.read_text() == "first"


def test_what_a_killed_run_left_goes_away(tmp_path: Path) -> None:
    (tmp_path / ".a.dprp-12345678").write_text("half")
    (tmp_path / ".b.dprp-12345678").write_text("half, of another file")
    write(tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.dprp-12345678", "a"]
