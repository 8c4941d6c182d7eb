"""What is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from .base import Options


@dataclass(frozen=True, kw_only=True)
class ForceOptions(Options):
    """Whether files may be replaced.

    Attributes:
        force: Write over what is there.
    """

    force: bool = False


@dataclass(frozen=True, kw_only=True)
class OutputOptions(ForceOptions):
    """A file.

    Attributes:
        output: File to write.
    """

    output: Annotated[Path, Option("--output", "-o")]


@dataclass(frozen=True, kw_only=True)
class FolderOptions(OutputOptions):
    """A folder.

    Attributes:
        output: Folder to write.
    """


@dataclass(frozen=True, kw_only=True)
class QuietOptions(Options):
    """What is said on the way.

    Attributes:
        quiet: Neither notes nor progress bars.
    """

    quiet: bool = False
