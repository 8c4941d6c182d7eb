"""What a network takes besides its layers, so that a plan's latency can be foretold from those of its layers."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .chain_timing import TURNS
from .latency import random_inputs, time_runs, warm_up
from .profiler_cost import profiler_cost_us
from .profiling import ProfiledSession, Run
from .session import open_session

_WARM_MS = 100.0
_TURN_MS = 300.0
_FEWEST_RUNS, _MOST_RUNS = 5, 50
_LAYERS = frozenset(("Conv", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "MatMul"))


@dataclass(frozen=True)
class NetworkTime:
    """Latency of a network, and its share that is spent in layers.

    Attributes:
        total_ms: of one run.
        layers_ms: in the kernels of convolutions and dense layers.
    """

    total_ms: float
    layers_ms: float

    @property
    def rest_ms(self) -> float:
        """Everything that factoring leaves as it is: pooling, activations, the session itself."""
        return self.total_ms - self.layers_ms

    def predict_ms(self, dense_ms: float, planned_ms: float) -> float:
        """Latency of the network with other layers.

        The times of a table may be days old, and the machine slower or faster today. So only their ratio is used:
        rest_ms + layers_ms * planned_ms / dense_ms.

        Args:
            dense_ms: sum of a `LatencyTable`'s times over all layers of this network, > 0.
            planned_ms: the same sum over the layers that take their place.
        """
        return self.rest_ms + self.layers_ms * planned_ms / dense_ms


def network_ms(path: str | Path, threads: int = 1) -> float:
    """Milliseconds of one run of a file; see `time_network`."""
    return time_network(path, threads=threads).total_ms


def time_network(path: str | Path, *, threads: int = 1) -> NetworkTime:
    """Time an ONNX file in this process by the same statistic as the chains of a `LatencyTable`.

    Takes about two seconds: the best of three turns, each the median of the runs that fit in 0.3 s, first as it
    is and then again with its kernels profiled.

    Args:
        path: an ONNX file; a free batch dimension is taken as 1.
        threads: threads inside an operator, >= 1.

    Raises:
        ModelFileError: no such file, or one that ONNX Runtime cannot run.
        ExportError: threads below 1, or inputs that cannot be made up.
    """
    file = Path(path)
    session = open_session(file, threads=threads)
    inputs = random_inputs(session, 1, str(path))
    run_ms = warm_up(session, inputs, _WARM_MS, str(path))
    runs = min(_MOST_RUNS, max(_FEWEST_RUNS, round(_TURN_MS / run_ms)))
    turns = []
    with tempfile.TemporaryDirectory(prefix="dprp-", ignore_cleanup_errors=True) as name:
        folder, options = Path(name), session.get_session_options()
        cost_us = profiler_cost_us(options, folder)
        for _ in range(TURNS):
            total_ms = float(np.median(time_runs(session, inputs, runs))) / 1e6
            profiled = ProfiledSession(file, options, folder, str(path))
            for _ in range(1 + runs):
                profiled.run()
            # A share, as the profiled runs are not the ones that gave the total.
            share = float(np.median([_layers_share(run, cost_us) for run in profiled.finish()[1:]]))
            turns.append(NetworkTime(total_ms, total_ms * share))
    return min(turns, key=lambda turn: turn.total_ms)


def _layers_share(run: Run, cost_us: float) -> float:
    times_us = [(kernel.op_type in _LAYERS, max(0.0, kernel.duration_us - cost_us)) for kernel in run.kernels]
    return sum(time_us for is_layer, time_us in times_us if is_layer) / sum(time_us for _, time_us in times_us)
