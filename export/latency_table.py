"""What layers cost in ONNX Runtime on this machine, before any network is built from them."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from pathlib import Path

from .chain_timing import TURNS, time_chains
from .errors import ExportError
from .latency_cache import LatencyCache, default_folder
from .plain_layer import Chain, chain_name, check_chain

# Measured together and kept on disk together: a few seconds' worth.
_BATCH = 96


class LatencyTable:
    """Times of chains of layers: one layer is a dense one, two are a factored pair.

    A figure says what the chain adds to a network's latency at a batch of 1, measured on small graphs of random
    weights in this process. It is kept on disk per CPU model, ONNX Runtime version and threads; where the folder
    cannot be written, for as long as the table lives. Times on disk are as old as the file: compare them with a
    network timed today by `NetworkTime.predict_ms`, and delete the file after the machine has changed.

    Args:
        threads: threads inside an operator, >= 1.
        folder: of the files; None takes `dprp/latency` in the user's cache folder.
        on_measured: called with (chains done, chains to measure) while measuring; never for what is known.

    Raises:
        ExportError: threads below 1.
    """

    def __init__(
        self,
        *,
        threads: int = 1,
        folder: Path | None = None,
        on_measured: Callable[[int, int], None] | None = None,
    ) -> None:
        if threads < 1:
            raise ExportError(f"threads: {threads} is not at least 1. Give the number of CPU threads.")
        self._threads = threads
        self._cache = LatencyCache(default_folder() if folder is None else folder, threads)
        self._known_ms: dict[str, float] = {}
        self._on_measured = on_measured

    def measure(self, chains: Collection[Chain]) -> dict[Chain, float]:
        """Milliseconds of each chain, measured where it is not known yet.

        Args:
            chains: layers that follow each other; equal chains are measured once. Give those of a whole network,
                known or not: they run beside each other, as a layer is faster with the caches to itself.

        Returns:
            Chain to milliseconds of one run on one sample.

        Raises:
            ExportError: a layer that cannot be, or layers that do not follow each other.
            BenchmarkError: ONNX Runtime cannot run a chain.
        """
        names = {chain: chain_name(chain) for chain in chains}
        for chain in names:
            check_chain(chain)
        self._known_ms = self._cache.read() | self._known_ms
        known = [chain for chain, name in names.items() if name in self._known_ms]
        missing = [chain for chain, name in names.items() if name not in self._known_ms]
        # Layers of one network come in order of size; a batch shall have some of each.
        random.Random(0).shuffle(missing)
        for start in range(0, len(missing), _BATCH):
            batch = missing[start : start + _BATCH]
            progress = _Progress(self._on_measured, start, len(missing))
            times_ms = time_chains(batch, self._threads, progress.advance, known)
            known += batch
            found = {names[chain]: time_ms for chain, time_ms in times_ms.items()}
            self._known_ms |= found
            self._cache.add(found)
        return {chain: self._known_ms[name] for chain, name in names.items()}


class _Progress:
    """Turns of a batch, told as chains of all batches."""

    def __init__(self, report: Callable[[int, int], None] | None, before: int, total: int) -> None:
        self._report = report
        self._before = before
        self._total = total
        self._turns = 0

    def advance(self) -> None:
        self._turns += 1
        if self._report is not None and self._turns % TURNS == 0:
            self._report(self._before + self._turns // TURNS, self._total)
