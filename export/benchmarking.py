"""Latency of ONNX files, measured so that they can be compared."""

from __future__ import annotations

import contextlib
import math
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from .errors import ExportError
from .modelfile import require_file
from .process import WorkerProcess
from .report import BenchmarkResult, Environment, FileResult
from .session import Array

_ROUND_MS = 50.0  # longer than a scheduler's time slice, shorter than most slow spells of a machine
_FEWEST_RUNS, _MOST_RUNS = 5, 200


def benchmark(
    paths: Sequence[str | Path],
    *,
    threads: int = 1,
    batch: int = 1,
    rounds: int = 20,
    runs_per_round: int | None = None,
    warmup_ms: float = 200.0,
    timeout_s: float = 120.0,
) -> BenchmarkResult:
    """Time ONNX files against each other in ONNX Runtime on the CPU.

    Each file has a process of its own; only one of them runs at a time. All are loaded and warmed up first,
    then they take turns, round by round in changing order, so that noise hits all alike. Inputs are random.

    Args:
        paths: ONNX files, at least one; the first is what the others are compared with.
        threads: threads inside an operator, >= 1.
        batch: images per run, >= 1.
        rounds: turns of each file, >= 1.
        runs_per_round: timed runs in a turn, >= 1; None takes as many as fit in 50 ms, 5 to 200.
        warmup_ms: time each file runs before any timing, >= 0.
        timeout_s: longest wait for any one answer of a process, > 0; a turn of a large model has to fit.

    Returns:
        Figures per file; print it for a table.

    Raises:
        ModelFileError: no such file.
        BenchmarkError: a file that ONNX Runtime cannot run, or a process that died or hung.
        ExportError: an option out of range.
    """
    if isinstance(paths, (str, Path)) or not paths:
        raise ExportError(f"paths: {paths!r} is not a list of files. Give at least one, as in ['model.onnx'].")
    _check_counts(threads=threads, batch=batch, rounds=rounds)
    if runs_per_round is not None:
        _check_counts(runs_per_round=runs_per_round)
    files = [require_file(path) for path in paths]
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(WorkerProcess(str(file), timeout_s)) for file in files]
        for worker in workers:
            worker.receive()
        load_ms = [
            float(worker.ask("load", path=str(file), threads=threads, batch=batch)["load_ms"])
            for worker, file in zip(workers, files, strict=True)
        ]
        runs = [
            runs_per_round or _fitting_runs(worker.ask("warm", duration_ms=warmup_ms)["run_ms"]) for worker in workers
        ]
        times_ms = _interleave(workers, runs, rounds)
        peaks = [worker.ask("peak")["peak_bytes"] for worker in workers]

    medians_ms = [np.median(rows, axis=1) for rows in times_ms]
    results = tuple(
        FileResult(
            path=str(path),
            size_bytes=file.stat().st_size,
            load_ms=load_ms[index],
            median_ms=float(np.median(times_ms[index])),
            p90_ms=float(np.percentile(times_ms[index], 90)),
            images_per_s=1000.0 * batch / float(np.median(times_ms[index])),
            peak_memory_bytes=peaks[index],
            speedup=float(np.median(medians_ms[0] / medians_ms[index])),
            runs_per_round=runs[index],
            round_medians_ms=tuple(float(value) for value in medians_ms[index]),
        )
        for index, (path, file) in enumerate(zip(paths, files, strict=True))
    )
    return BenchmarkResult(results, Environment(cpu_name(), threads, batch, ort.__version__, rounds))


def _interleave(workers: list[WorkerProcess], runs: list[int], rounds: int) -> list[Array]:
    """Per worker, milliseconds of every run, (rounds, runs)."""
    times_ns: list[list[list[int]]] = [[] for _ in workers]
    for turn in range(rounds):
        order = range(len(workers))
        # Backwards every other round, or the first file would always follow the last one's heat.
        for index in order if turn % 2 == 0 else reversed(order):
            times_ns[index].append(workers[index].ask("round", runs=runs[index])["times_ns"])
    return [np.asarray(rows, dtype=np.float64) / 1e6 for rows in times_ns]


def _fitting_runs(run_ms: float) -> int:
    return min(_MOST_RUNS, max(_FEWEST_RUNS, math.ceil(_ROUND_MS / run_ms)))


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ExportError(f"{name}: {count} is not at least 1. Give a whole number from 1.")


def cpu_name() -> str:
    """Model name of the processor, or its architecture where the system does not tell."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown CPU"
