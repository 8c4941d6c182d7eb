"""The one guard for all inputs: regular files of a sane size, and one sentence for whatever is wrong with them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .quoting import quoted

# Far above every network that a CPU device could run; below it, safetensors and torch check what is claimed.
LARGEST_WEIGHTS = 2**36

_PART = 2**20


def check_input(path: Path, *, error: type[ValueError], largest: int = LARGEST_WEIGHTS, what: str = "a file") -> None:
    """Refuses what cannot be read to its end as a file.

    A FIFO would be waited for, a device read for ever, and a huge file fill the memory.

    Args:
        path: links are followed.
        error: what to raise.
        largest: bytes.
        what: the kind of file that belongs here.

    Raises:
        error: nothing is there, or a folder, a FIFO, a device, a socket, an empty file, one that is too large, or one
            that may not be read.
    """
    try:
        if path.is_dir():
            raise error(f"{quoted(path)}: is a folder; give the path of {what}")
        if not path.exists():
            raise error(f"{quoted(path)}: no such file; check the path, or give that of {what}")
        if not path.is_file():
            raise error(f"{quoted(path)}: is not a regular file; give the path of {what}")
        size = path.stat().st_size
        with path.open("rb"):
            pass
    except OSError as refused:
        raise error(f"{quoted(path)}: cannot be read ({refused.strerror}); check its permissions") from refused
    if size == 0:
        raise error(f"{quoted(path)}: the file is empty; copy or download it again")
    if size > largest:
        raise error(f"{quoted(path)}: has {size:,} bytes, {what} has at most {largest:,}; check the path")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_PART):
            digest.update(part)
    return digest.hexdigest()


@contextmanager
def reading(path: Path, *, error: type[ValueError], remedy: str = "write the file anew") -> Iterator[None]:
    """Turns whatever a damaged or hostile file provokes into one sentence that names the file.

    Args:
        path: what the block reads.
        error: what to raise; raised in the block, it passes unchanged.
        remedy: what the user can do.

    Raises:
        error: in place of any error that content can cause.
    """
    try:
        yield
    except error:
        raise
    except MemoryError as refused:
        raise error(f"{quoted(path)}: claims more than this machine's memory; {remedy}") from refused
    except RecursionError as refused:
        raise error(f"{quoted(path)}: is nested too deeply; {remedy}") from refused
    except OSError as refused:
        raise error(f"{quoted(path)}: cannot be read ({quoted(refused.strerror or refused)}); {remedy}") from refused
    except (ValueError, LookupError, TypeError, ArithmeticError, AttributeError) as refused:
        told = quoted(refused) or type(refused).__name__
        kind = "has no " if isinstance(refused, KeyError) else ""
        raise error(f"{quoted(path)}: does not read ({kind}{told}); {remedy}") from refused
