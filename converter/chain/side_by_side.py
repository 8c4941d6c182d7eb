"""ONNX files side by side: accuracy, size, time and memory, in the one table that every result is shown in."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...export import AnsweredBy, BenchmarkResult, Quantization, Search, Target, benchmark, evaluate_onnx, this_cpu

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_WIDTH = 120

_OF_A_FILE = ("size_bytes", "median_ms", "p90_ms", "images_per_s", "peak_memory_bytes", "speedup")


@dataclass(frozen=True)
class SideBySide:
    """Files in their order, each with its figures.

    Attributes:
        names: of the files.
        top1: percent of the test images, of each.
        images: that top-1 was counted on.
        labelled: whether top-1 is by labels, or else by the answers of the first file.
        timed: all of them, in turns; the first is what the others are compared with.
        found: how those of 8 bits were made, which are the last ones; one for each float32 file, or none.
    """

    names: tuple[str, ...]
    top1: tuple[float, ...]
    images: int
    timed: BenchmarkResult
    found: tuple[Quantization | Search, ...] = ()
    labelled: bool = True

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the figures ought to know."""
        return (*_notes_on_8_bits(self), *self.timed.notes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        files = [
            {"file": name, "top1": top1, **{key: getattr(file, key) for key in _OF_A_FILE}}
            for name, top1, file in zip(self.names, self.top1, self.timed.files, strict=True)
        ]
        return {
            "files": files,
            "images": self.images,
            "labelled": self.labelled,
            "quantized": [one.to_dict() for one in self.found],
            "environment": asdict(self.timed.environment),
            "notes": list(self.notes),
        }

    @property
    def where(self) -> str:
        """On which machine it was measured, and how."""
        where = self.timed.environment
        plural = "" if where.threads == 1 else "s"
        return f"{where.cpu}, {where.threads} thread{plural}, batch {where.batch}, ONNX Runtime {where.onnxruntime}"

    def table(self, counts: Mapping[str, Sequence[int]] | None = None, title: str | None = None) -> Table:
        """A column for each file, and a row for each figure.

        Args:
            counts: further rows, by their titles: a number for each file.
            title: of the table.
        """
        from rich.table import Table

        table = Table("", title=title)
        for name in _short(self.names):
            table.add_column(name, justify="right")
        files, first = self.timed.files, self.top1[0]
        gained = ["", *(f" ({top1 - first:+.2f})" for top1 in self.top1[1:])]
        scores = [f"{top1:.2f} %{gain}" for top1, gain in zip(self.top1, gained, strict=True)]
        table.add_row(f"{'top-1' if self.labelled else 'same answer'} of {self.images:,}", *scores)
        sizes = {**(counts or {}), "bytes": [file.size_bytes for file in files]}
        for row, values in sizes.items():
            table.add_row(row, *map(_with_part, values, [values[0]] * len(values)))
        for row, shown in _ROWS.items():
            table.add_row(row, *map(shown, files))
        return table

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=_WIDTH).print(self)
        return text.getvalue().rstrip()

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        return Group(self.table(), Text(self.where), *(Text(f"note: {note}") for note in self.notes))


_ROWS = {
    "median ms": lambda file: f"{file.median_ms:.3f}",
    "p90 ms": lambda file: f"{file.p90_ms:.3f}",
    "images/s": lambda file: f"{file.images_per_s:,.0f}",
    "peak MB": lambda file: "-" if file.peak_memory_bytes is None else f"{file.peak_memory_bytes / 1e6:.0f}",
    "as fast": lambda file: f"{file.speedup:.2f} x",
}


def measured(
    files: Mapping[str, Path], test: Iterable[Any], *found: Quantization | Search, threads: int, labelled: bool = True
) -> SideBySide:
    """Scores and times files.

    Args:
        files: by the name that they are told of by; those of float32 first, then as many of 8 bits, or none.
        test: batches of images and labels, gone through once for each file.
        found: how the files of 8 bits were made.
        threads: of ONNX Runtime.
        labelled: score by labels, or else by the answers of the first file.

    Raises:
        ExportError: a file cannot be scored or timed.
    """
    paths = list(files.values())
    batches = test if labelled else AnsweredBy(paths[0], test)
    scores = [evaluate_onnx(path, batches) for path in paths]
    timed = benchmark(paths, threads=threads)
    return SideBySide(tuple(files), tuple(score.top1 for score in scores), scores[0].images, timed, found, labelled)


def _notes_on_8_bits(files: SideBySide) -> list[str]:
    if not files.found:
        return []
    notes = [str(one) for one in files.found]
    for one in files.found:
        recipe = (one.made if isinstance(one, Search) else one).recipe
        if (recipe.target is Target.ARM) != (this_cpu() is Target.ARM):
            notes.append(f"it is made for {recipe.target} and was timed on {this_cpu()}, where it is slower")
    half = len(files.names) - len(files.found)
    floats, integers = files.timed.files[:half], files.timed.files[half:]
    for name, before, after in zip(files.names[half:], floats, integers, strict=True):
        if after.median_ms >= before.median_ms:
            notes.append(f"{Path(name).name} is not faster here than float32: use that, where size is no matter")
    fastest = min(integers, key=lambda file: file.median_ms)
    if len(integers) > 1 and fastest is not integers[-1]:
        first, last = (Path(files.names[place]).name for place in (half + integers.index(fastest), -1))
        notes.append(f"{last} is slower here than {first}: thin layers gain less from 8 bits than whole ones")
    return notes


def _short(names: Sequence[str]) -> Sequence[str]:
    """Names without folder and suffix, where these tell them apart; a heading breaks at blanks alone."""
    short = [Path(name).stem.replace("-", " ") for name in names]
    return short if len({*short}) == len(short) else names


def _with_part(value: int, of: int) -> str:
    return f"{value:,}" if value == of else f"{value:,} = {100 * value / max(1, of):.1f} %"
