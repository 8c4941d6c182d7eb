"""Dense against compressed: what `dprp compress` found."""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .int8 import Int8

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Figures:
    """One network.

    Attributes:
        top1: percent, of the ONNX file on the test images.
        params: parameters.
        macs: multiply-adds at batch 1.
        onnx_bytes: size of the ONNX file.
        median_ms, p90_ms: latency of the ONNX file at batch 1.
    """

    top1: float
    params: int
    macs: int
    onnx_bytes: int
    median_ms: float
    p90_ms: float


@dataclass(frozen=True)
class Summary:
    """Both networks, and how they came about.

    Attributes:
        model: as it was named.
        budget: as it was asked for.
        epochs: of fine-tuning.
        seed: of the run.
        dense, compressed: their figures.
        speedup: dense over compressed latency, measured in turns.
        images: test images behind top1.
        max_rel_error: largest difference of the compressed ONNX file from torch, relative to the output's scale.
        cpu, threads: where latency was measured.
        notes: what a reader of the figures ought to know.
        versions: of what the result depends on.
        folder: where the files are.
        made_by: the verb.
        int8: all files beside each other, where there are some of 8 bits.
        result_id: 32 random hexadecimal digits, by which a result folder is known as dprp's.
    """

    model: str
    budget: str
    epochs: int
    seed: int
    dense: Figures
    compressed: Figures
    speedup: float
    images: int
    max_rel_error: float
    cpu: str
    threads: int
    notes: tuple[str, ...]
    versions: dict[str, str]
    folder: Path
    made_by: str = "compress"
    int8: Int8 | None = None
    result_id: str = field(default_factory=lambda: secrets.token_hex(16))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        told = {**asdict(replace(self, int8=None)), "notes": list(self.notes), "folder": str(self.folder)}
        return told | {"int8": None if self.int8 is None else self.int8.to_dict()}

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("", title=f"{self.model}, {self.budget}, {self.epochs} epochs")
        for title in ("dense", "compressed", "change"):
            table.add_column(title, justify="right")
        old, new = self.dense, self.compressed
        table.add_row(f"top-1 on {self.images:,} images", f"{old.top1:.2f} %", f"{new.top1:.2f} %", _points(old, new))
        table.add_row("parameters", f"{old.params:,}", f"{new.params:,}", _part(old.params, new.params))
        table.add_row("MACs", f"{old.macs:,}", f"{new.macs:,}", _part(old.macs, new.macs))
        table.add_row(
            "ONNX file, bytes", f"{old.onnx_bytes:,}", f"{new.onnx_bytes:,}", _part(old.onnx_bytes, new.onnx_bytes)
        )
        table.add_row(
            "latency, median ms", f"{old.median_ms:.3f}", f"{new.median_ms:.3f}", f"{self.speedup:.2f} x as fast"
        )
        table.add_row("latency, p90 ms", f"{old.p90_ms:.3f}", f"{new.p90_ms:.3f}", "")
        plural = "" if self.threads == 1 else "s"
        lines = [
            f"latency: {self.cpu}, {self.threads} thread{plural}, batch 1",
            f"compressed.onnx differs from torch by at most {self.max_rel_error:.1e} of the output's scale",
            *(f"note: {note}" for note in self.notes),
            f"files in {self.folder}",
        ]
        # Text takes a path's [brackets] as they are.
        eight = [] if self.int8 is None else [self.int8]
        return Group(table, *(Text(line, no_wrap=True, overflow="ignore") for line in lines), *eight)


def remarks(dense: Figures, compressed: Figures, speedup: float) -> list[str]:
    """Plain words where the compressed network is no better."""
    notes = []
    if speedup <= 1.0:
        notes.append(f"the compressed file is not faster here ({speedup:.2f} x the dense speed); lower the budget")
    if compressed.onnx_bytes >= dense.onnx_bytes:
        notes.append("the compressed file is not smaller; lower the budget, or ask for params instead of macs")
    return notes


def _part(old: int, new: int) -> str:
    return f"{100 * new / max(1, old):.1f} %"


def _points(old: Figures, new: Figures) -> str:
    return f"{new.top1 - old.top1:+.2f} points"
