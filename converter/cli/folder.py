"""The folder that `dprp compress` leaves: whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import CliError

PLAN = "plan.json"
COMPRESSED = "compressed.safetensors"
DENSE_ONNX = "dense.onnx"
COMPRESSED_ONNX = "compressed.onnx"
SUMMARY = "summary.json"
FILES = frozenset({PLAN, COMPRESSED, DENSE_ONNX, COMPRESSED_ONNX, SUMMARY})


def is_ours(path: Path) -> bool:
    """Whether a folder holds what an earlier run left, and nothing else; an empty one counts as well."""
    if not path.is_dir():
        return False
    names = {entry.name for entry in path.iterdir()}
    return not names or (SUMMARY in names and names <= FILES)


def check_folder(path: Path, *, force: bool) -> None:
    """Refuses a folder that may not be written.

    Raises:
        CliError: it exists, or holds other people's files, or the folder around it does not exist.
    """
    if not path.parent.is_dir():
        raise CliError(f"{path}: the folder {path.parent} does not exist; make it first")
    if path.exists() and not path.is_dir():
        raise CliError(f"{path}: is a file; give the name of a folder")
    if path.exists() and not force:
        raise CliError(f"{path}: exists already; pass --force (force=True) to replace it")
    if path.exists() and not is_ours(path):
        strangers = sorted({entry.name for entry in path.iterdir()} - FILES)
        what = (
            f"holds {strangers[0]}, which dprp did not write"
            if strangers
            else f"has no {SUMMARY}, so it is not dprp's"
        )
        raise CliError(f"{path}: {what}; give another folder")


@contextmanager
def made_whole(path: Path, *, force: bool) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends well, and goes away otherwise.

    Raises:
        CliError: the folder may not be written.
    """
    path = path.resolve()
    check_folder(path, force=force)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    made, old = temporary / "new", temporary / "old"
    try:
        made.mkdir()  # a folder of its own: mkdtemp keeps the outer one to its owner
        yield made
        check_folder(path, force=force)  # somebody else may have come first
        if path.exists():
            path.rename(old)
        try:
            made.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
