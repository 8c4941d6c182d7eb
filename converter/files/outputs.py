"""The one guard for all outputs: a regular file or a new name in a folder, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

from .leftovers import abandoned, held, synced
from .quoting import quoted

_LONGEST_NAME = 200  # bytes; file systems take 255, and the temporary name is longer


def check_output(path: Path, *, force: bool, error: type[ValueError]) -> None:
    """Refuses a name that a file may not be written to.

    Args:
        path: a regular file or a new name in a folder that exists; of a link, what it points to.
        force: whether an existing file may be replaced.
        error: what to raise.

    Raises:
        error: a folder, a device, a FIFO or a socket is in the way, there is no such folder, the name is too long, or
            a file exists and is not to be replaced.
    """
    name = quoted(path)
    if len(os.fsencode(path.name)) > _LONGEST_NAME or "\0" in str(path):
        raise error(f"{name}: is no name for a file; give one of at most {_LONGEST_NAME} bytes")
    try:
        target = path.resolve()
        if target.is_dir():
            raise error(f"{name}: is a folder; give the name of a file")
        if not target.parent.is_dir():
            raise error(f"{name}: the folder {quoted(target_folder(path))} does not exist; make it first")
        if target.exists() and not target.is_file():
            raise error(f"{name}: is a device, a FIFO or a socket; give the name of a file")
        if target.exists() and not force:
            raise error(f"{name}: exists already; pass --force (force=True) to write over it")
    except (OSError, RuntimeError) as refused:  # a loop of links is a RuntimeError before Python 3.13
        raise error(f"{name}: cannot be written ({quoted(refused)}); give another name") from refused
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise error(f"{name}: the folder {quoted(target.parent)} may not be written to; give another one")


def target_folder(path: Path) -> Path:
    """The folder that a file will be in: the one written by the user, unless a link leads elsewhere."""
    return path.resolve().parent if path.is_symlink() else path.parent


def check_outputs(
    *outputs: Path | None, inputs: Iterable[Path | str | None] = (), force: bool, error: type[ValueError]
) -> None:
    """Refuses, before any work is done, what a verb may not write.

    Args:
        outputs: the files to be; None is left out.
        inputs: what the verb reads; text that is no file's path, and None, are left out.
        force: whether existing files may be replaced.
        error: what to raise.

    Raises:
        error: one of them may not be written, two are one file, or one is an input.
    """
    targets = [output for output in outputs if output is not None]
    for target in targets:
        check_output(target, force=force, error=error)
    for one, other in combinations(targets, 2):
        if _same(one, other):
            raise error(f"{quoted(other)}: is the file of another output, too; give each a file of its own")
    for target in targets:
        for read in inputs:
            if read is not None and _same(target, Path(read)):
                raise error(f"{quoted(target)}: is read as an input, too; give the output a file of its own")


@contextmanager
def written_whole(path: Path, *, force: bool, error: type[ValueError]) -> Iterator[Path]:
    """A temporary name beside a file that takes its place when the block ends well, and goes away otherwise.

    Where `path` is a link, the file that it points to is replaced and the link stays.

    Raises:
        error: the file may not be written, or the disk refuses; what was there is unchanged then.
    """
    check_output(path, force=force, error=error)
    target = path.resolve()
    prefix = f".{target.name}.dprp-"
    for leftover in target.parent.iterdir():  # of a run that was killed
        if leftover.name.startswith(prefix) and leftover.is_file() and abandoned(leftover):
            leftover.unlink(missing_ok=True)
    try:
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=target.suffix, dir=target.parent)
    except OSError as refused:
        raise error(f"{quoted(path)}: cannot be written ({refused.strerror}); nothing was changed") from refused
    os.close(handle)
    temporary = Path(name)
    try:
        with held(temporary):
            yield temporary
            temporary.chmod(0o666 & ~_umask())  # mkstemp keeps the file to its owner
            synced(temporary)
            check_output(path, force=force, error=error)  # somebody else may have come first
            temporary.replace(target)
            synced(target.parent)
    except OSError as refused:
        why = quoted(refused.strerror or refused)
        raise error(f"{quoted(path)}: cannot be written ({why}); nothing was changed") from refused
    finally:
        temporary.unlink(missing_ok=True)


def _same(one: Path, other: Path) -> bool:
    try:
        if one.exists() and other.exists():
            return one.samefile(other)  # hard links as well
        return one.resolve() == other.resolve()
    except (OSError, RuntimeError, ValueError):  # no path at all
        return False


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
