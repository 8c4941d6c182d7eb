"""Where to compute, and with which random numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from typer import Option

from .base import Options

DeviceName = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class MachineOptions(Options):
    """The machine.

    Attributes:
        seed: Of the random numbers.
        device: Where to compute.
    """

    seed: Annotated[int, Option(min=0, max=2**63 - 1)] = 0
    device: DeviceName = "auto"


@dataclass(frozen=True, kw_only=True)
class ThreadOptions(Options):
    """Threads.

    Attributes:
        threads: ONNX Runtime's, where latency is measured.
    """

    threads: Annotated[int, Option(min=1, max=1024)] = 1
