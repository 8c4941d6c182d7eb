"""Timing one session in this process."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

from .errors import ExportError
from .session import Array, infer

_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


def random_inputs(session: ort.InferenceSession, batch: int, label: str) -> dict[str, Array]:
    """Standard normal inputs of the shapes a model declares, with its free batch dimension filled in.

    Args:
        session: an open session.
        batch: images per run, >= 1.
        label: what errors call the file.

    Returns:
        Input name to array of shape (batch, ...).

    Raises:
        ExportError: inputs that are not floating point, free dimensions other than the batch, or a fixed
            batch of another size.
    """
    generator = np.random.default_rng(0)
    inputs: dict[str, Array] = {}
    for entry in session.get_inputs():
        if entry.type not in _FLOATS:
            raise ExportError(f"{label}: input {entry.name} is {entry.type}, only floating point can be timed.")
        first, *rest = entry.shape or [1]
        if not all(isinstance(size, int) for size in rest):
            shape = ", ".join(map(str, entry.shape))
            raise ExportError(
                f"{label}: input {entry.name} has free dimensions other than the batch ({shape}). "
                f"Export it with a fixed image size."
            )
        if isinstance(first, int) and first != batch:
            raise ExportError(f"{label}: has a fixed batch of {first}, asked for {batch}. Pass batch={first}.")
        inputs[entry.name] = generator.standard_normal((batch, *rest)).astype(_FLOATS[entry.type])
    return inputs


def time_runs(session: ort.InferenceSession, inputs: dict[str, Array], runs: int) -> list[int]:
    """Nanoseconds of each of a number of runs in a row, after one that is not timed.

    The one that is not timed fills the caches, which another process may have emptied in between.
    """
    session.run(None, inputs)
    times_ns = []
    for _ in range(runs):
        start_ns = time.perf_counter_ns()
        session.run(None, inputs)
        times_ns.append(time.perf_counter_ns() - start_ns)
    return times_ns


def warm_up(session: ort.InferenceSession, inputs: dict[str, Array], duration_ms: float, label: str) -> float:
    """Run for a while, at least three times, so that memory is allocated and the clock has risen.

    Args:
        session: an open session.
        inputs: from `random_inputs`.
        duration_ms: shortest time to run for, >= 0.
        label: what errors call the file.

    Returns:
        Median milliseconds of a run, a first estimate.

    Raises:
        ModelFileError: the model cannot be run.
    """
    infer(session, list(inputs.values()), label)
    start_ns = time.perf_counter_ns()
    times_ns: list[int] = []
    while len(times_ns) < 3 or time.perf_counter_ns() - start_ns < duration_ms * 1e6:
        times_ns += time_runs(session, inputs, 1)
    return float(np.median(times_ns)) / 1e6


def peak_memory_bytes() -> int | None:
    """Most memory this process ever held; None where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: Linux hands it on across exec, so that it starts at the parent's size.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource  # not there on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
