"""Files of float32 and of 8 bits side by side: accuracy, size, time and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...export import (
    BenchmarkResult,
    FileResult,
    Quantization,
    Search,
    Target,
    benchmark,
    evaluate_onnx,
    quantize,
    this_cpu,
)
from .data import Loader
from .folder import COMPRESSED_INT8, COMPRESSED_ONNX, DENSE_INT8, DENSE_ONNX

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Int8:
    """Files in their order, each with its figures.

    Attributes:
        names: of the files.
        top1: percent of the test images, of each.
        images: that top-1 was counted on.
        timed: all of them, in turns.
        found: how the files of 8 bits were made.
    """

    names: tuple[str, ...]
    top1: tuple[float, ...]
    images: int
    timed: BenchmarkResult
    found: tuple[Quantization | Search, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the figures ought to know."""
        notes = [str(one) for one in self.found]
        for one in self.found:
            recipe = (one.made if isinstance(one, Search) else one).recipe
            if (recipe.target is Target.ARM) != (this_cpu() is Target.ARM):
                notes.append(f"it is made for {recipe.target} and was timed on {this_cpu()}, where it is slower")
        half = len(self.names) - len(self.found)
        floats, integers = self.timed.files[:half], self.timed.files[half:]
        for name, before, after in zip(self.names[half:], floats, integers, strict=True):
            if after.median_ms >= before.median_ms:
                notes.append(f"{Path(name).name} is not faster here than float32: use that, where size is no matter")
        fastest = min(integers, key=lambda file: file.median_ms)
        if len(integers) > 1 and fastest is not integers[-1]:
            first, last = (Path(self.names[place]).name for place in (half + integers.index(fastest), -1))
            notes.append(f"{last} is slower here than {first}: thin layers gain less from 8 bits than whole ones")
        return (*notes, *self.timed.notes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        files = [
            {"file": name, "top1": top1, **_figures(file)}
            for name, top1, file in zip(self.names, self.top1, self.timed.files, strict=True)
        ]
        return {
            "files": files,
            "images": self.images,
            "quantized": [one.to_dict() for one in self.found],
            "environment": asdict(self.timed.environment),
            "notes": list(self.notes),
        }

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("file")
        for title in (f"top-1 of {self.images:,}", "bytes", "median ms", "p90 ms", "images/s", "peak MB", "speed-up"):
            table.add_column(title, justify="right")
        for name, top1, file in zip(self.names, self.top1, self.timed.files, strict=True):
            peak = math.nan if file.peak_memory_bytes is None else file.peak_memory_bytes / 1e6
            times = (f"{file.median_ms:.3f}", f"{file.p90_ms:.3f}", f"{file.images_per_s:.0f}")
            size, faster = f"{file.size_bytes:,}", f"{file.speedup:.2f} x"
            table.add_row(Path(name).name, f"{top1:.2f} %", size, *times, f"{peak:.0f}", faster)
        where = self.timed.environment
        plural = "" if where.threads == 1 else "s"
        lines = [
            f"{where.cpu}, {where.threads} thread{plural}, batch {where.batch}, ONNX Runtime {where.onnxruntime}",
            *(f"note: {note}" for note in self.notes),
        ]
        return Group(table, *map(Text, lines))


def measured(files: Mapping[str, Path], test: Loader, *found: Quantization | Search, threads: int) -> Int8:
    """Scores and times files.

    Args:
        files: by the name that they are told of by; those of float32 first, then as many of 8 bits.
        test: test images.
        found: how the files of 8 bits were made.
        threads: of ONNX Runtime.

    Raises:
        ExportError: a file cannot be scored or timed.
    """
    scores = [evaluate_onnx(file, test) for file in files.values()]
    timed = benchmark(list(files.values()), threads=threads)
    return Int8(tuple(files), tuple(score.top1 for score in scores), scores[0].images, timed, found)


def _figures(file: FileResult) -> dict[str, Any]:
    names = ("size_bytes", "median_ms", "p90_ms", "images_per_s", "peak_memory_bytes", "speedup")
    return {name: getattr(file, name) for name in names}


def in_8_bits(work: Path, images: Sequence[Tensor], test: Loader, *, target: Target, threads: int) -> Int8:
    """Makes files of 8 bits of the dense and the compressed file in a result folder, and measures all four.

    Args:
        work: the folder.
        images: batches to find ranges on.
        test: test images.
        target: the CPU that they shall run on.
        threads: of ONNX Runtime.

    Raises:
        ExportError: a file cannot be quantised, scored or timed.
    """
    pairs = {DENSE_ONNX: DENSE_INT8, COMPRESSED_ONNX: COMPRESSED_INT8}
    found = [quantize(work / source, work / made, images, target=target) for source, made in pairs.items()]
    return measured({name: work / name for name in (*pairs, *pairs.values())}, test, *found, threads=threads)
