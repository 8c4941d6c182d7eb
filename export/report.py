"""What a benchmark found, as data and as a table."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Below this share of rounds with the same winner, two files are not ranked.
_SHOWN_NOTES = 3
_CLEAR_SHARE = 0.8


@dataclass(frozen=True)
class Environment:
    """Where and how the times were taken.

    Attributes:
        cpu: model name of the processor.
        threads: ONNX Runtime threads inside an operator.
        batch: images per run.
        onnxruntime: its version.
        rounds: rounds, in each of which every file had its turn.
    """

    cpu: str
    threads: int
    batch: int
    onnxruntime: str
    rounds: int


@dataclass(frozen=True)
class FileResult:
    """One file's figures.

    Attributes:
        path: as it was given.
        size_bytes: of the file.
        load_ms: to open the file in ONNX Runtime, once.
        median_ms: of all timed runs.
        p90_ms: nine of ten runs took no longer.
        images_per_s: batch / median_ms.
        peak_memory_bytes: of the process that ran only this file, Python and ONNX Runtime included; None if
            the system does not tell.
        speedup: median over the rounds of (first file's median / this file's median in the same round). A
            slow spell of the machine outlasts a round, so it hits both and cancels; in a ratio of totals it
            stays.
        runs_per_round: timed runs in a row.
        round_medians_ms: median of each round, in order.
    """

    path: str
    size_bytes: int
    load_ms: float
    median_ms: float
    p90_ms: float
    images_per_s: float
    peak_memory_bytes: int | None
    speedup: float
    runs_per_round: int
    round_medians_ms: tuple[float, ...]


@dataclass(frozen=True)
class BenchmarkResult:
    """Figures of all files, the first one being what the others are compared with.

    Attributes:
        files: in the order given.
        environment: where and how.
    """

    files: tuple[FileResult, ...]
    environment: Environment

    @property
    def notes(self) -> tuple[str, ...]:
        """One sentence for each two files that cannot be ranked, as the rounds disagree on the faster."""
        notes = []
        named = zip(self._names(), self.files, strict=True)
        for (name, one), (other_name, other) in itertools.combinations(named, 2):
            pairs = list(zip(one.round_medians_ms, other.round_medians_ms, strict=True))
            wins = sum(a < b for a, b in pairs), sum(b < a for a, b in pairs)
            if max(wins) < _CLEAR_SHARE * len(pairs):
                notes.append(
                    f"{name} and {other_name} cannot be ranked: the first was faster in {wins[0]} of "
                    f"{len(pairs)} rounds, the second in {wins[1]}. Use a quieter machine or more rounds."
                )
        return tuple(notes)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for JSON, notes included."""
        return {**asdict(self), "notes": list(self.notes)}

    def __str__(self) -> str:
        head = ("file", "size MB", "load ms", "median ms", "p90 ms", "images/s", "peak MB", "speed-up")
        rows = [head, *(_row(name, file) for name, file in zip(self._names(), self.files, strict=True))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [_align(row, widths) for row in rows]
        lines.insert(1, "-" * len(lines[0]))
        where = self.environment
        plural = "" if where.threads == 1 else "s"
        lines.append(
            f"{where.cpu}, {where.threads} thread{plural}, batch {where.batch}, "
            f"ONNX Runtime {where.onnxruntime}, {where.rounds} interleaved rounds"
        )
        notes = [f"note: {note}" for note in self.notes[:_SHOWN_NOTES]]
        if len(self.notes) > _SHOWN_NOTES:
            notes.append(f"note: so it is with {len(self.notes) - _SHOWN_NOTES} more pairs of files.")
        return "\n".join([*lines, *notes])

    def _names(self) -> list[str]:
        """File names; whole paths where two are called the same; numbered where a file is given twice."""
        paths = [file.path for file in self.files]
        short = [Path(path).name for path in paths]
        if len(set(short)) == len(short):
            return short
        if len(set(paths)) == len(paths):
            return paths
        return [f"{path} #{index}" for index, path in enumerate(paths, 1)]


def _row(name: str, file: FileResult) -> tuple[str, ...]:
    peak = "-" if file.peak_memory_bytes is None else f"{file.peak_memory_bytes / 1e6:.0f}"
    return (
        name,
        f"{file.size_bytes / 1e6:.3f}",
        f"{file.load_ms:.1f}",
        f"{file.median_ms:.3f}",
        f"{file.p90_ms:.3f}",
        f"{file.images_per_s:.1f}",
        peak,
        f"{file.speedup:.2f}x",
    )


def _align(row: tuple[str, ...], widths: list[int]) -> str:
    first, *rest = [
        cell.ljust(width) if index == 0 else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join([first, *rest])
