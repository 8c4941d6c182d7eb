"""Does the file compute what the model computes?"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from torch import nn

from .calls import Flat, Inputs
from .errors import DataError, ExportError, VerificationError, first_line
from .session import Array, infer, open_session


@dataclass(frozen=True)
class Verification:
    """How far a file's outputs are from the model's.

    Attributes:
        max_abs: largest |model - file| over all outputs.
        max_rel: largest max|model - file| / max|model| of a batch; infinite when a value is not finite.
        top1_agreement: fraction of images with the same largest output, 0..1; None if the first output is not
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
        batches: at least one (N, ...) tensor, or what `to_onnx` takes of a model of several inputs.
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
        flat = Flat(reference, batch)
        expected = [tensor.numpy() for tensor in flat.run(flat.tensors).values()]
        actual = infer(session, [tensor.numpy() for tensor in flat.tensors], label)
        shapes, theirs = ([array.shape for array in arrays] for arrays in (expected, actual))
        if shapes != theirs:
            raise VerificationError(
                f"{label}: output of shape {_listed(theirs)} where the model gives {_listed(shapes)}. "
                f"Compare the file with the model that it was exported from."
            )
        for ours, other in zip(expected, actual, strict=True):
            absolute, relative = _difference(ours, other)
            max_abs, max_rel = max(max_abs, absolute), max(max_rel, relative)
        if expected[0].ndim == 2:
            agreed += int((expected[0].argmax(1) == actual[0].argmax(1)).sum())
            ranked += len(expected[0])
        images += flat.images
        count += 1
    if count == 0:
        raise DataError(f"{label}: no batches to compare on. Give at least one.")
    agreement = agreed / ranked if ranked else None
    return Verification(max_abs, max_rel, agreement, count, images, tolerance)


def _listed(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes))


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
