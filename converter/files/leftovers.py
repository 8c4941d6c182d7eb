"""Temporary files and folders: held while they are written, and cleared away by the next run where one was killed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Marks a file or folder as in use for as long as the block runs, or the process lives."""
    if sys.platform == "win32":
        yield
        return
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def abandoned(path: Path) -> bool:
    """Whether whoever made a file or folder with `held` is gone; False where that cannot be told."""
    if sys.platform == "win32":
        return False
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(handle)


def in_use(path: Path) -> bool:
    """Whether somebody holds a file or folder now; False where that cannot be told."""
    return sys.platform != "win32" and path.exists() and not abandoned(path)


def synced(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    with contextlib.suppress(OSError):  # not every file system lets a folder be synced
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
