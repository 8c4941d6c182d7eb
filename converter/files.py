"""Writing files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import CheckpointError
from .leftovers import abandoned, held, synced


def check_target(path: Path, *, force: bool) -> None:
    """Raises CheckpointError when a file may not be written here."""
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise CheckpointError(f"{path}: the folder {path.parent} does not exist; make it first")
    if path.exists() and not force:
        raise CheckpointError(f"{path}: exists already; pass --force (force=True) to write over it")


@contextmanager
def written_whole(path: Path, *, force: bool) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place when the block ends well, and goes away otherwise.

    Raises:
        CheckpointError: the file may not be written.
    """
    check_target(path, force=force)
    prefix = f".{path.name}.dprp-"
    for leftover in path.parent.iterdir():  # of a run that was killed
        if leftover.name.startswith(prefix) and leftover.is_file() and abandoned(leftover):
            leftover.unlink(missing_ok=True)
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    with held(temporary):
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())  # mkstemp keeps the file to its owner
            synced(temporary)
            temporary.replace(path)
            synced(path.parent)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written ({error.strerror}); nothing was changed") from error
        finally:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
