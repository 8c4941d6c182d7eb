"""`dprp benchmark`: latency of ONNX files, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...export import BenchmarkResult
from ...export import benchmark as time_files
from .errors import CliError


def benchmark(
    files: Sequence[Path | str],
    *,
    threads: int = 1,
    batch: int = 1,
    rounds: int = 20,
    device: str = "auto",
) -> BenchmarkResult:
    """Times ONNX files on the CPU, in turns.

    Args:
        files: at least one; the first is what the others are compared with.
        threads: of ONNX Runtime.
        batch: images in a run.
        rounds: turns of each file.
        device: auto or cpu.

    Raises:
        CliError, ExportError: one sentence each.
    """
    if device == "cuda":
        raise CliError("dprp benchmark times files on the CPU; leave --device cuda out")
    return time_files([str(file) for file in files], threads=threads, batch=batch, rounds=rounds)
