"""Files of 8 bits beside those of float32 in a result folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ...export import Quantization, Target, quantize
from .folder import COMPRESSED_INT8, COMPRESSED_ONNX, DENSE_INT8, DENSE_ONNX


def in_8_bits(work: Path, images: Sequence[Tensor], *, target: Target) -> tuple[Quantization, ...]:
    """Makes files of 8 bits of the dense and the compressed file.

    Args:
        work: the folder.
        images: batches to find ranges on.
        target: the CPU that they shall run on.

    Raises:
        ExportError: a file cannot be quantised.
    """
    pairs = {DENSE_ONNX: DENSE_INT8, COMPRESSED_ONNX: COMPRESSED_INT8}
    return tuple(quantize(work / source, work / made, images, target=target) for source, made in pairs.items())
