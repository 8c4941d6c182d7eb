"""How integers are best multiplied on a kind of CPU."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path


class Target(str, Enum):
    """A kind of CPU that a file is made for."""

    AUTO = "auto"
    X86_VNNI = "x86-vnni"
    X86 = "x86"
    ARM = "arm"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Recipe:
    """Types of 8 bits.

    Attributes:
        target: the CPU it is for; never `auto`.
        unsigned: whether activations are uint8; else they are int8. Weights are int8.
        reduce_range: whether weights have 7 bits. Without VNNI x86 adds two products of 8 bits in 16, which overflow.

    Source: ONNX Runtime's documentation, "Quantize ONNX models"; measured in docs/RESULTS.md.
    """

    target: Target
    unsigned: bool
    reduce_range: bool

    @property
    def drawn(self) -> float:
        """How far the ranges between two factors are drawn towards equal ones; see `ranges_between`."""
        return 0.25 if self.reduce_range else 0.5

    def __str__(self) -> str:
        activations = "uint8" if self.unsigned else "int8"
        weights = "int8 weights of 7 bits" if self.reduce_range else "int8 weights"
        return f"{activations} activations, {weights} by channel, for {self.target}"


_RECIPES = {
    Target.X86_VNNI: Recipe(Target.X86_VNNI, unsigned=True, reduce_range=False),
    Target.X86: Recipe(Target.X86, unsigned=True, reduce_range=True),
    Target.ARM: Recipe(Target.ARM, unsigned=False, reduce_range=False),
}


def recipe_for(target: Target) -> Recipe:
    """The recipe for a CPU; that of this machine for `auto`."""
    return _RECIPES[this_cpu() if target is Target.AUTO else target]


def this_cpu() -> Target:
    """What this machine is; x86 without VNNI where it does not say."""
    if platform.machine().lower() in ("aarch64", "arm64"):
        return Target.ARM
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Target.X86
    return Target.X86_VNNI if re.search(r"\bavx(512)?_vnni\b", told) else Target.X86
