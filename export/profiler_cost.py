"""What ONNX Runtime's profiler itself adds to each kernel time that it reports.

A kernel is reported some 3 us longer than it takes unwatched (measured for kernels of 1 to 2400 us: a constant).
That is nothing for a large layer; for two layers of a tenth of a millisecond, it would make factoring seem slower
than it is.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

from .chain_graph import chain_model
from .plain_layer import CONVOLUTION, PlainLayer
from .profiling import ProfiledSession

_TINY = PlainLayer(CONVOLUTION, 8, 8, height=8, width=8)
_FEW, _MANY = 8, 40
_RUNS = 100


def profiler_cost_us(options: ort.SessionOptions, folder: Path) -> float:
    """Microseconds that profiling adds to one kernel; takes about 50 ms.

    The time of a tiny kernel as reported, less what 32 more of them add to an unprofiled run.

    Args:
        options: of a session that `open_session` made; its profiling settings are changed.
        folder: for the profile.
    """
    reported = ProfiledSession(_tiny_model(_MANY), options, folder, "profiler cost")
    for _ in range(_RUNS):
        reported.run()
    reported_us = np.median([np.mean([kernel.duration_us for kernel in run.kernels]) for run in reported.finish()])
    options.enable_profiling = False
    few, many = (
        ort.InferenceSession(_tiny_model(n), options, providers=["CPUExecutionProvider"]) for n in (_FEW, _MANY)
    )
    inputs = {"input": np.ones((1, 1, 8, 8), np.float32)}
    walls_ns: tuple[list[int], list[int]] = ([], [])
    for _ in range(_RUNS):
        for session, times_ns in zip((few, many), walls_ns, strict=True):
            start_ns = time.perf_counter_ns()
            session.run(None, inputs)
            times_ns.append(time.perf_counter_ns() - start_ns)
    real_us = (np.median(walls_ns[1]) - np.median(walls_ns[0])) / 1e3 / (_MANY - _FEW)
    return max(0.0, float(reported_us - real_us))


def _tiny_model(layers: int) -> bytes:
    model: bytes = chain_model((_TINY,) * layers).SerializeToString()
    return model
