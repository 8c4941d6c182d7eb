"""A network becomes a verified ONNX file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ...export import Verification, to_onnx
from ...files import check_outputs
from ..conversion.attached import plan_of
from ..conversion.fusion import fuse
from ..errors import OptionError
from .metadata import onnx_metadata
from .network import Network


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
        OptionError: not an .onnx, it exists, its folder does not, it is no regular file, or it is one of the inputs.
    """
    target = Path(output)
    if target.suffix != ".onnx":
        raise OptionError(f"{target}: an ONNX file is named .onnx; name it so")
    check_outputs(target, inputs=inputs, force=force, error=OptionError)
    return target
