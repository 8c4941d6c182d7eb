"""8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from typer import Option

from .base import Options

CpuTarget = Literal["auto", "x86-vnni", "x86", "arm"]
JudgeName = Literal["labels", "answers"]
RangesName = Literal["minmax", "entropy", "percentile"]


@dataclass(frozen=True, kw_only=True)
class TargetOptions(Options):
    """For which CPU.

    Attributes:
        target: The CPU that files of 8 bits shall run on; auto is this one.
    """

    target: Annotated[CpuTarget, Option(rich_help_panel="8 bits")] = "auto"


@dataclass(frozen=True, kw_only=True)
class Int8Options(TargetOptions):
    """Beside the float32 files.

    Attributes:
        int8: Make files of 8 bits as well, of the dense and of the compressed network, and measure all four.
    """

    int8: Annotated[bool, Option("--int8", rich_help_panel="8 bits")] = False
