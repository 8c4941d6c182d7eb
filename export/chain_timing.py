"""Timing chains so that the figures add up to those of a network.

A chain's time is that of its kernels, from ONNX Runtime's profiler: no session overhead, no neighbours. Two dozen
chains drawn at random take turns, one run each, so that a chain finds the caches as a layer of a network finds
them: swept by other layers' weights. Run over and over alone it would keep its weights in the cache, and a
512-channel layer seem a sixth too fast. Every chain has several turns, each among other chains and at another
time; the best turn counts, as noise only ever adds.
"""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from .chain_graph import AFTER, BEFORE, chain_model
from .errors import BenchmarkError
from .plain_layer import LINEAR, Chain, PlainLayer, chain_name
from .profiler_cost import profiler_cost_us
from .profiling import Kernel, ProfiledSession
from .session import open_session

TURNS = 3
_TURN_MS = 8.0  # of one chain in one turn, on average over its group
_FEWEST_ROUNDS, _MOST_ROUNDS = 5, 25
_WARM_ROUNDS = 2  # the first run allocates
_GROUP = 24  # about as many as a network has layers
_GROUP_WEIGHTS = 64_000_000  # 256 MB, as ONNX Runtime may hold every weight twice


def time_chains(
    chains: Sequence[Chain], threads: int, advance: Callable[[], None], company: Sequence[Chain] = ()
) -> dict[Chain, float]:
    """Milliseconds of each chain's kernels in one run.

    Args:
        chains: different from each other; accepted by `check_chain`.
        threads: threads inside an operator, >= 1.
        company: chains that run along where a group would be small, so that its caches are swept all the same.
        advance: called when a chain has had one of its `TURNS` turns.

    Raises:
        BenchmarkError: ONNX Runtime cannot run a chain.
    """
    best_ms = dict.fromkeys(chains, math.inf)
    shuffler = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="dprp-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        options = _session_options(threads, folder)
        cost_us = profiler_cost_us(options, folder)
        for _ in range(TURNS):
            order = list(chains)
            shuffler.shuffle(order)
            for group in _groups(order):
                along = shuffler.sample(company, min(len(company), _GROUP))
                full = next(_groups([*group, *along]))
                for chain, time_ms in zip(full, _time_group(full, options, folder, cost_us), strict=True):
                    if chain in best_ms:
                        best_ms[chain] = min(best_ms[chain], time_ms)
                        advance()
    return best_ms


def _session_options(threads: int, folder: Path) -> ort.SessionOptions:
    """The settings of every session of ours: `open_session` alone makes them, for a file."""
    file = folder / "any.onnx"
    file.write_bytes(chain_model((PlainLayer(LINEAR, 1, 1),)).SerializeToString())
    return open_session(file, threads=threads).get_session_options()


def _groups(chains: Sequence[Chain]) -> Iterator[list[Chain]]:
    group: list[Chain] = []
    weights = 0
    for chain in chains:
        more = sum(layer.weights for layer in chain)
        if group and (len(group) == _GROUP or weights + more > _GROUP_WEIGHTS):
            yield group
            group, weights = [], 0
        group.append(chain)
        weights += more
    if group:
        yield group


def _time_group(chains: Sequence[Chain], options: ort.SessionOptions, folder: Path, cost_us: float) -> list[float]:
    """Median milliseconds of each chain over one turn."""
    sessions = [
        ProfiledSession(chain_model(chain).SerializeToString(), options, folder, chain_name(chain))
        for chain in chains
    ]
    for _ in range(_WARM_ROUNDS):
        for session in sessions:
            session.run()
    start_ns = time.perf_counter_ns()
    rounds = 0
    while rounds < _FEWEST_ROUNDS or (
        rounds < _MOST_ROUNDS and time.perf_counter_ns() - start_ns < len(chains) * _TURN_MS * 1e6
    ):
        # Never backwards: a chain that runs twice in a row finds its weights in the cache.
        for session in sessions:
            session.run()
        rounds += 1
    return [
        float(np.median([chain_us(run.kernels, chain, cost_us) for run in session.finish()[_WARM_ROUNDS:]])) / 1e3
        for chain, session in zip(chains, sessions, strict=True)
    ]


def chain_us(kernels: Sequence[Kernel], chain: Chain, cost_us: float) -> float:
    """Microseconds between the neighbours of a chain, reorder nodes included and the profiler's cost taken off."""
    names = [kernel.name for kernel in kernels]
    ends = [index for index, name in enumerate(names) if name.startswith(AFTER)]
    if not ends and chain[0].kind != LINEAR:
        raise BenchmarkError(
            f"{chain_name(chain)}: ONNX Runtime {ort.__version__} profiled {', '.join(names) or 'nothing'}, "
            f"from which its time cannot be told. Plan by MACs instead."
        )
    begins = [index + 1 for index, name in enumerate(names) if name.startswith(BEFORE)]
    counted = kernels[begins[0] if begins else 0 : ends[0] if ends else None]
    return max(0.0, sum(kernel.duration_us - cost_us for kernel in counted))
