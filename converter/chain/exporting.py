"""A network becomes a verified ONNX file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ...export import Verification, to_onnx
from ..analysis.inputs import Samples
from ..conversion.attached import plan_of
from ..conversion.fusion import fuse
from .metadata import onnx_metadata
from .network import Network


def export_network(
    network: Network,
    path: Path,
    example: Samples,
    *,
    tolerance: float | None = None,
    half: bool = False,
    batch: int | None = None,
    force: bool = False,
    device: torch.device | None = None,
) -> Verification:
    """Fuses and exports an open network.

    Args:
        network: dense or low-rank.
        path: the `.onnx` file.
        example: (N, C, H, W) inputs like those to come, or several things that belong together.
        tolerance, half, batch: as for `to_onnx`.
        force: write over an existing file.
        device: where to fuse.

    Raises:
        ConverterError, ExportError: nothing has been written then.
    """
    plain = plain_network(network, example, device=device)
    plan = plan_of(network.model) if network.compressed else None
    about = onnx_metadata(network.source, plan)
    example = example[: batch or len(example)]
    return to_onnx(plain, example, path, metadata=about, tolerance=tolerance, half=half, batch=batch, force=force)


def plain_network(network: Network, example: Samples, *, device: torch.device | None = None) -> nn.Module:
    """What is exported of an open network: plain layers, BatchNorm folded, on the CPU.

    Args:
        network, example, device: as for `export_network`.
    """
    plain = fuse(network.model.to(device), example[:1].to(device or torch.device("cpu"))).cpu()
    network.model.cpu()
    return plain
