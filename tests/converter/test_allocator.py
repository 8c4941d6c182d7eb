"""What was freed is used again, where the C library can be told so."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from dprp.converter import allocator, keep_freed_memory

GLIBC = os.name == "posix" and hasattr(ctypes.CDLL(None), "mallopt")

FAULTS = """
import resource
import dprp.converter
dprp.converter.keep_freed_memory()
import torch

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**25)  # 128 MB, or 32,768 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(*[faults() for _ in range(60)])
"""
"""The first few may differ: glibc up to 2.37 cuts each aligned block out of a larger one, and where a thread's cache
keeps the rest (seven of a size), the freed block is a few bytes too small for the next."""


class _Library:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def mallopt(self, option: int, value: int) -> int:
        self.told.append((option, value))
        return 1


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")
def test_blocks_come_to_cost_the_system_nothing() -> None:
    others = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    ran = subprocess.run([sys.executable, "-c", FAULTS], env=others, capture_output=True, text=True, check=True)
    faults = [int(count) for count in ran.stdout.split()]
    assert sum(faults) < 30 * 2**15
    assert sum(faults[-20:]) < 1000


def test_settings_of_the_environment_win(monkeypatch: pytest.MonkeyPatch) -> None:
    library = _Library()
    monkeypatch.setattr(allocator, "_C_LIBRARY", library)
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    keep_freed_memory()
    assert not library.told
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    keep_freed_memory()
    assert library.told


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_C_LIBRARY", None)
    keep_freed_memory()
    allocator.give_back()
