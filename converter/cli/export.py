"""`dprp export`: a verified ONNX file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...export import Verification, to_onnx
from ...files import check_outputs
from ..conversion.attached import plan_of
from ..conversion.fusion import fuse
from .device import pick_device
from .errors import CliError
from .metadata import onnx_metadata
from .network import Network, open_network


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


def export(
    model: str,
    *,
    output: Path | str,
    checkpoint: Path | str | None = None,
    classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    random_weights: bool = False,
    trust: str | None = None,
    tolerance: float = 1e-4,
    force: bool = False,
    seed: int = 0,
    device: str = "auto",
) -> Exported:
    """Fuses a network into plain layers and writes it as one ONNX file, if that computes the same as torch.

    Args:
        model: a compressed `.safetensors`, or a name with a checkpoint.
        output: the `.onnx` file.
        checkpoint: weights of a named model.
        classes, input_shape, mean, std: None for the architecture's own.
        random_weights: go on without a checkpoint.
        trust: `package.module:function` that a compressed file may be built by.
        tolerance: largest accepted difference, relative to the output's scale.
        force: write over an existing file.
        seed: of random weights.
        device: where to fuse: auto, cpu or cuda.

    Raises:
        CliError, ConverterError, ModelsError, ExportError: one sentence each; nothing has been written then.
    """
    target = check_onnx_target(output, inputs=(model, checkpoint), force=force)
    where = pick_device(device)
    network = open_network(
        model,
        checkpoint=checkpoint,
        classes=classes,
        input_shape=input_shape,
        mean=mean,
        std=std,
        random_weights=random_weights,
        trust=trust,
        seed=seed,
    )
    network.classes()
    verification = export_network(network, target, network.example(4), tolerance=tolerance, force=force, device=where)
    return Exported(verification, target.stat().st_size, target)


def export_network(
    network: Network,
    path: Path,
    example: Tensor,
    *,
    tolerance: float = 1e-4,
    force: bool = False,
    device: torch.device | None = None,
) -> Verification:
    """Fuses and exports an open network.

    Args:
        network: dense or low-rank.
        path: the `.onnx` file.
        example: (N, C, H, W) inputs like those to come.
        tolerance: as for `export`.
        force: write over an existing file.
        device: where to fuse.

    Raises:
        ConverterError, ExportError: nothing has been written then.
    """
    plain = fuse(network.model.to(device), example[:1].to(device)).cpu()
    network.model.cpu()
    about = onnx_metadata(network.source, plan_of(network.model) if network.compressed else None)
    return to_onnx(plain, example, path, metadata=about, tolerance=tolerance, force=force)


def check_onnx_target(output: Path | str, *, inputs: Iterable[Path | str | None], force: bool) -> Path:
    """Refuses a name that an ONNX file cannot be written to, before any work is done.

    Raises:
        CliError: not an .onnx, it exists, its folder does not, it is no regular file, or it is one of the inputs.
    """
    target = Path(output)
    if target.suffix != ".onnx":
        raise CliError(f"{target}: an ONNX file is named .onnx; name it so")
    check_outputs(target, inputs=inputs, force=force, error=CliError)
    return target
