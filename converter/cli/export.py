"""`dprp export`: a verified ONNX file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...export import Verification
from ..chain.device import pick_device
from ..chain.exporting import export_network
from ..chain.targets import check_onnx_target
from .asked import asked_network, with_labels
from .verbs import ExportOptions


@dataclass(frozen=True)
class Exported:
    """What `export` did.

    Attributes:
        verification: how closely the file agrees with torch.
        onnx_bytes: size of the file.
        output: the file.
    """

    verification: Verification
    onnx_bytes: int
    output: Path

    def __str__(self) -> str:
        return f"{self.output}: {self.verification}\nwrote {self.output} ({self.onnx_bytes / 1e6:.3f} MB)"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"output": str(self.output), "onnx_bytes": self.onnx_bytes, **asdict(self.verification)}


def export(asked: ExportOptions) -> Exported:
    """Fuses a network into plain layers and writes it as one ONNX file, if that computes the same as torch.

    Raises:
        ConverterError, ModelsError, ExportError: one sentence each; nothing has been written then.
    """
    target = check_onnx_target(asked.output, inputs=(asked.model, asked.checkpoint, asked.labels), force=asked.force)
    where = pick_device(asked.device)
    network = asked_network(asked, seed=asked.seed, trust=asked.trust)
    network.classes()
    network = with_labels(network, asked)
    example = network.example(4)
    verification = export_network(
        network,
        target,
        example,
        tolerance=asked.tolerance,
        half=asked.half,
        batch=asked.batch,
        force=asked.force,
        device=where,
    )
    return Exported(verification, target.stat().st_size, target)
