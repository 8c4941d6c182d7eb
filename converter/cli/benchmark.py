"""`dprp benchmark`: latency of ONNX files, side by side."""

from __future__ import annotations

from ...export import BenchmarkResult
from ...export import benchmark as time_files
from ..errors import OptionError
from .verbs import BenchmarkOptions


def benchmark(asked: BenchmarkOptions) -> BenchmarkResult:
    """Times ONNX files on the CPU, in turns.

    Raises:
        OptionError, ExportError: one sentence each.
    """
    if asked.device == "cuda":
        raise OptionError("dprp benchmark times files on the CPU; leave --device cuda out")
    files = [str(file) for file in asked.files]
    return time_files(files, threads=asked.threads, batch=asked.batch, rounds=asked.rounds)
