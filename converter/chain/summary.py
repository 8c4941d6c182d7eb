"""Dense against compressed: what `dprp compress` found."""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .gain import Gain
from .side_by_side import SideBySide

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Figures:
    """One network in float32.

    Attributes:
        top1: percent, of the ONNX file on the test images.
        params: parameters.
        macs: multiply-adds at batch 1.
        onnx_bytes: size of the ONNX file.
        median_ms, p90_ms: latency of the ONNX file at batch 1.
        images_per_s: of the ONNX file at batch 1.
        peak_memory_bytes: of a process that runs it; None if the system does not tell.
    """

    top1: float
    params: int
    macs: int
    onnx_bytes: int
    median_ms: float
    p90_ms: float
    images_per_s: float
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class Summary:
    """Both networks, and how they came about.

    Attributes:
        model: as it was named.
        budget: as it was asked for.
        epochs: of fine-tuning.
        seed: of the run.
        dense, compressed: their figures.
        files: dense and compressed, and perhaps both in 8 bits, side by side.
        max_rel_error: largest difference of the compressed ONNX file from torch, relative to the output's scale.
        notes: what a reader of the figures ought to know.
        versions: of what the result depends on.
        folder: where the files are.
        made_by: the verb.
        gain: what training was worth; None without, or where ranks fell on the way.
        result_id: 32 random hexadecimal digits, by which a result folder is known as dprp's.
    """

    model: str
    budget: str
    epochs: int
    seed: int
    dense: Figures
    compressed: Figures
    files: SideBySide
    max_rel_error: float
    notes: tuple[str, ...]
    versions: dict[str, str]
    folder: Path
    made_by: str = "compress"
    gain: Gain | None = None
    result_id: str = field(default_factory=lambda: secrets.token_hex(16))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        where, timed = self.files.timed.environment, self.files.timed.files
        return {
            "model": self.model,
            "budget": self.budget,
            "epochs": self.epochs,
            "seed": self.seed,
            "dense": asdict(self.dense),
            "compressed": asdict(self.compressed),
            "top1_before_training": None if self.gain is None else self.gain.before,
            "speedup": timed[1].speedup,
            "images": self.files.images,
            "max_rel_error": self.max_rel_error,
            "cpu": where.cpu,
            "threads": where.threads,
            "notes": list(self.notes),
            "versions": self.versions,
            "folder": str(self.folder),
            "made_by": self.made_by,
            "int8": self.files.to_dict() if self.files.found else None,
            "result_id": self.result_id,
        }

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        pairs = len(self.files.names) // 2
        counts = {
            "parameters": [self.dense.params, self.compressed.params] * pairs,
            "MACs": [self.dense.macs, self.compressed.macs] * pairs,
        }
        lines = [
            self.files.where,
            f"compressed.onnx differs from torch by at most {self.max_rel_error:.1e} of the output's scale",
            *(f"note: {note}" for note in self.notes),
            f"files in {self.folder}",
        ]
        title = f"{self.model}, {self.budget}, {self.epochs} epochs"
        # Text takes a path's [brackets] as they are.
        return Group(
            self.files.table(counts, title), *(Text(line, no_wrap=True, overflow="ignore") for line in lines)
        )


def remarks(dense: Figures, compressed: Figures, speedup: float) -> list[str]:
    """Plain words where the compressed network is no better."""
    notes = []
    if speedup <= 1.0:
        notes.append(f"the compressed file is not faster here ({speedup:.2f} x the dense speed); lower the budget")
    if compressed.onnx_bytes >= dense.onnx_bytes:
        notes.append("the compressed file is not smaller; lower the budget, or ask for params instead of macs")
    return notes
