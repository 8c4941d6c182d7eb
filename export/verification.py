"""Does the file compute what the model computes?"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from .errors import DataError, ExportError, VerificationError, first_line
from .session import Array, infer, open_session

Inputs = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Verification:
    """How far a file's outputs are from the model's.

    Attributes:
        max_abs: largest |model - file| over all outputs.
        max_rel: largest max|model - file| / max|model| of a batch; infinite when a value is not finite.
        top1_agreement: fraction of images with the same largest output, 0..1; None if outputs are not
            (N, classes).
        batches: batches compared.
        images: images compared.
        tolerance: largest max_rel that is accepted.
    """

    max_abs: float
    max_rel: float
    top1_agreement: float | None
    batches: int
    images: int
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the file is accepted."""
        return self.max_rel <= self.tolerance

    def __str__(self) -> str:
        verdict = "same outputs as torch" if self.ok else "outputs differ from torch"
        batches = "1 batch" if self.batches == 1 else f"{self.batches} batches"
        text = (
            f"{verdict} on {self.images} images in {batches}: largest difference {self.max_abs:.1e}, "
            f"{self.max_rel:.1e} of the output's scale (tolerance {self.tolerance:.0e})"
        )
        if self.top1_agreement is not None:
            text += f", top-1 agreement {100 * self.top1_agreement:.1f} %"
        return text


def verify(model: nn.Module, path: str | Path, batches: Iterable[Inputs], *, tolerance: float = 1e-4) -> Verification:
    """Compare an ONNX file with the model it came from, output by output.

    Args:
        model: the exported model; it is compared in evaluation mode, in a copy, on the CPU.
        path: the ONNX file.
        batches: at least one (N, ...) tensor, or a tuple of them for a model of several inputs.
        tolerance: largest accepted difference relative to the output's scale, >= 0.

    Returns:
        The differences; a difference too large shows in `ok`, it does not raise.

    Raises:
        ModelFileError: no such file, or one that ONNX Runtime cannot run on these batches.
        VerificationError: outputs of another shape.
        DataError: no batches.
    """
    session = open_session(Path(path))
    return compare(reference_copy(model), session, batches, tolerance=tolerance, label=str(path))


def reference_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode on the CPU, where torch computes in full float32 (a GPU may use TF32)."""
    try:
        return copy.deepcopy(model).cpu().eval()
    except RuntimeError as error:
        raise ExportError(
            f"{type(model).__name__}: cannot be copied ({first_line(error)}). "
            f"Remove parametrisations and cached tensors from the model first."
        ) from error


def compare(
    reference: nn.Module,
    session: ort.InferenceSession,
    batches: Iterable[Inputs],
    *,
    tolerance: float,
    label: str,
) -> Verification:
    """`verify` on an open session and a model already in evaluation mode on the CPU.

    Args:
        reference: from `reference_copy`.
        session: the file's.
        batches: as for `verify`.
        tolerance: as for `verify`.
        label: what errors call the file.
    """
    max_abs = max_rel = 0.0
    agreed = ranked = images = count = 0
    for batch in batches:
        inputs = tuple(tensor.detach().cpu() for tensor in as_tuple(batch))
        expected = run_model(reference, inputs).numpy()
        actual = infer(session, [tensor.numpy() for tensor in inputs], label)
        if expected.shape != actual.shape:
            raise VerificationError(
                f"{label}: output of shape {actual.shape} where the model gives {expected.shape}. "
                f"Compare the file with the model that it was exported from."
            )
        absolute, relative = _difference(expected, actual)
        max_abs, max_rel = max(max_abs, absolute), max(max_rel, relative)
        if expected.ndim == 2:
            agreed += int((expected.argmax(1) == actual.argmax(1)).sum())
            ranked += len(expected)
        images += len(inputs[0])
        count += 1
    if count == 0:
        raise DataError(f"{label}: no batches to compare on. Give at least one.")
    agreement = agreed / ranked if ranked else None
    return Verification(max_abs, max_rel, agreement, count, images, tolerance)


def as_tuple(batch: Inputs) -> tuple[Tensor, ...]:
    """A batch as the tuple of the model's inputs."""
    return (batch,) if isinstance(batch, Tensor) else tuple(batch)


def run_model(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """The model's output without gradients.

    Raises:
        ExportError: forward fails, or gives something other than one tensor.
    """
    name = type(model).__name__
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs)
    try:
        with torch.no_grad():
            output = model(*inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ExportError(
            f"{name}: forward fails on inputs of shape {shapes} ({first_line(error)}). "
            f"Give an example that the model accepts, and let forward work at any batch size."
        ) from error
    if not isinstance(output, Tensor):
        raise ExportError(
            f"{name}: forward gives {type(output).__name__}, only one tensor can be exported. "
            f"Wrap the model in a module that returns the tensor you need."
        )
    return output


def _difference(expected: Array, actual: Array) -> tuple[float, float]:
    if expected.size == 0:
        return 0.0, 0.0
    if not (np.isfinite(expected).all() and np.isfinite(actual).all()):
        return float("inf"), float("inf")
    absolute = float(np.abs(expected.astype(np.float64) - actual.astype(np.float64)).max())
    scale = float(np.abs(expected).max())
    if scale == 0.0:
        return absolute, 0.0 if absolute == 0.0 else float("inf")
    return absolute, absolute / scale
