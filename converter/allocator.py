"""What the C library does with memory that was freed.

glibc asks the system for each block of more than 32 MB and hands it back when it is freed. The system clears every
page of it again, which takes a network of large maps as long as its arithmetic: mobilenet_v2 runs 64 images 2 to 3
times as fast where blocks are kept and used again.
"""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Of mallopt(3)."""

_C_LIBRARY = ctypes.CDLL(None) if os.name == "posix" else None


def keep_freed_memory() -> None:
    """Has this process keep what it frees, and use it again; call before torch computes anything.

    For programs of their own: the process grows to its peak and stays there until `give_back`. Settings of the
    environment (MALLOC_MMAP_THRESHOLD_ and its like) win. Does nothing where the C library is not glibc.
    """
    option = getattr(_C_LIBRARY, "mallopt", None)
    if option is None or any(name.startswith("MALLOC_") for name in os.environ):
        return
    option(_ARENA_MAX, 1)  # others hold blocks of 64 MB at most
    option(_MMAP_THRESHOLD, 2**30)
    option(_TRIM_THRESHOLD, 2**31 - 1)


def give_back() -> None:
    """Gives the system what was freed: glibc keeps it by the gigabyte where tensors of many sizes came and went."""
    trim = getattr(_C_LIBRARY, "malloc_trim", None)
    if trim is not None:
        trim(0)
