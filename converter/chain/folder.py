"""The folder that `dprp compress` leaves: whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...files import quoted
from ...files.exchange import exchanged
from ...files.leftovers import abandoned, held, synced
from ..errors import OptionError

PLAN = "plan.json"
COMPRESSED = "compressed.safetensors"
DENSE_ONNX = "dense.onnx"
COMPRESSED_ONNX = "compressed.onnx"
DENSE_INT8 = "dense-int8.onnx"
COMPRESSED_INT8 = "compressed-int8.onnx"
SUMMARY = "summary.json"
RECIPE = "recipe.yaml"
FILES = frozenset({PLAN, COMPRESSED, DENSE_ONNX, COMPRESSED_ONNX, DENSE_INT8, COMPRESSED_INT8, SUMMARY, RECIPE})

_OLD, _NEW = "old", "new"
_LARGEST_SUMMARY = 2**20


def made_by(path: Path) -> str | None:
    """The verb that left a result folder, or None where none did.

    A result is known by the random id in its summary: a folder of yours with files of the same names has none.
    """
    summary = path / SUMMARY
    try:
        if not summary.is_file() or summary.stat().st_size > _LARGEST_SUMMARY:
            return None
        told = json.loads(summary.read_text(encoding="utf-8"))
        verb, mark = told["made_by"], told["result_id"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    known = isinstance(verb, str) and isinstance(mark, str) and re.fullmatch(r"[0-9a-f]{32}", mark)
    return verb if known else None


def is_empty(path: Path) -> bool:
    """Whether a folder has nothing in it."""
    return path.is_dir() and not any(path.iterdir())


def check_folder(path: Path, *, inputs: Iterable[Path | str | None] = (), force: bool) -> None:
    """Refuses a folder that may not be written.

    Raises:
        OptionError: it exists, or holds other people's files or an input, or the folder around it does not exist, or
            it has no name under which another could take its place.
    """
    if path.name in ("", ".."):
        raise OptionError(f"{path}: is not a folder's name; give one, such as out")
    if not path.parent.is_dir():
        raise OptionError(f"{path}: the folder {path.parent} does not exist; make it first")
    if path.exists() and not path.is_dir():
        raise OptionError(f"{path}: is no folder; give the name of one")
    if path.exists() and not force:
        raise OptionError(f"{path}: exists already; pass --force (force=True) to replace it")
    for read in inputs:
        if read is not None and path.resolve() in Path(read).resolve().parents:
            raise OptionError(f"{path}: holds {quoted(read)}, which is read as an input; give another folder")
    if not path.exists() or is_empty(path):
        return
    strangers = sorted({entry.name for entry in path.iterdir()} - FILES)
    if strangers:
        raise OptionError(f"{path}: holds {strangers[0]}, which dprp did not write; give another folder")
    if made_by(path) is None:
        what = f"its {SUMMARY} has no result_id" if (path / SUMMARY).exists() else f"has no {SUMMARY}"
        raise OptionError(f"{path}: {what}, so it is not dprp's; give another folder")


@contextmanager
def made_whole(path: Path, *, force: bool) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends well, and goes away otherwise.

    Whatever ends the block or this function, the older result or the whole new one is at `path`. Where the file
    system cannot exchange two names in one step, a kill between two renames leaves neither there, and the next run
    puts the older one back.

    Raises:
        OptionError: the folder may not be written.
    """
    path = path.resolve()
    if path.parent.is_dir():
        _clear_leftovers(path)
    check_folder(path, force=force)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent))
    except OSError as error:
        raise OptionError(f"{path}: cannot be written ({error.strerror}); nothing was changed") from error
    with held(temporary):
        try:
            made = temporary / _NEW
            made.mkdir()  # a folder of its own: mkdtemp keeps the outer one to its owner
            with _told_of(made, path):
                yield made
            check_folder(path, force=force)  # somebody else may have come first
            for entry in (*made.iterdir(), made):
                synced(entry)
            _put(made, path, temporary / _OLD)
            synced(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # and the old result with it, last of all


@contextmanager
def _told_of(made: Path, path: Path) -> Iterator[None]:
    """Errors about a file in the temporary folder name the folder that it was for."""
    try:
        yield
    except OSError as error:
        if str(made) not in str(error.filename):
            raise
        raise OptionError(f"{path}: cannot be written ({error.strerror}); nothing was changed") from error
    except ValueError as error:
        if str(made) not in str(error):
            raise
        raise OptionError(str(error).replace(str(made), str(path))) from error


def _put(made: Path, path: Path, old: Path) -> None:
    if path.exists() and exchanged(made, path):
        return  # the older result is in the temporary folder now
    try:
        if path.exists():
            path.rename(old)
        made.rename(path)
    except BaseException:  # an interrupt between the two as well
        if old.exists() and not path.exists():
            old.rename(path)
        raise


def _clear_leftovers(path: Path) -> None:
    """Undoes what a killed run left half done, unless it runs on."""
    for leftover in path.parent.glob(f"{_glob_escaped(_prefix(path))}*"):
        if not leftover.is_dir() or leftover.is_symlink() or not abandoned(leftover):
            continue
        if (leftover / _OLD).is_dir() and not path.exists():
            (leftover / _OLD).rename(path)
        shutil.rmtree(leftover, ignore_errors=True)


def _prefix(path: Path) -> str:
    return f".{path.name}.dprp-"


def _glob_escaped(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)
