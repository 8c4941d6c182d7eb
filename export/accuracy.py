"""Top-1 accuracy of an ONNX file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .calls import Inputs, arrays_in, images_in
from .errors import DataError
from .session import Array, infer, open_session

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Accuracy:
    """Share of images whose largest output is their label.

    Attributes:
        top1: percent, 0..100.
        images: images scored.
    """

    top1: float
    images: int

    def __str__(self) -> str:
        return f"top-1 {self.top1:.2f} % on {self.images} images"


@dataclass(frozen=True)
class AnsweredBy:
    """Batches with a file's answers in place of labels: top-1 by them is how often another file answers the same.

    Attributes:
        path: an ONNX classifier.
        batches: pairs of images (N, ...) and whatever; gone through anew each time.
    """

    path: Path
    batches: Iterable[tuple[Inputs, Any]]

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor]]:
        """Pairs of images and answers (N,)."""
        import torch

        session = open_session(self.path)
        for pictures, _ in self.batches:
            if images_in(pictures):
                scores = infer(session, arrays_in(pictures), str(self.path))[0]
                yield pictures, torch.from_numpy(scores.argmax(1))


def evaluate_onnx(
    path: str | Path, batches: Iterable[tuple[Inputs, Tensor]], *, threads: int | None = None
) -> Accuracy:
    """Score an ONNX classifier on labelled images.

    Args:
        path: an ONNX file whose first output is of shape (N, classes).
        batches: pairs of images (N, ...), or what `to_onnx` takes of a model of several inputs, and integer labels
            (N,), each in 0..classes - 1; N may vary.
        threads: threads inside an operator, >= 1; None takes every core this process may use.

    Returns:
        Top-1 over all images.

    Raises:
        ModelFileError: no such file, or one that ONNX Runtime cannot run on these images.
        DataError: no images, labels that do not fit, or an output that is not (N, classes).
    """
    file = Path(path)
    session = open_session(file, threads=threads)
    correct = images = 0
    for pictures, targets in batches:
        labels, count = targets.detach().cpu().numpy(), images_in(pictures)
        if count == 0:
            continue
        logits = infer(session, arrays_in(pictures), str(file))[0]
        _check(logits, labels, count, str(file))
        correct += int((logits.argmax(1) == labels).sum())
        images += count
    if images == 0:
        raise DataError(f"{file}: no images to score. Give at least one batch with images in it.")
    return Accuracy(100.0 * correct / images, images)


def _check(logits: Array, labels: Array, images: int, name: str) -> None:
    if logits.ndim != 2 or len(logits) != images:
        raise DataError(
            f"{name}: output of shape {logits.shape} for {images} images is not ({images}, classes). "
            f"Only a classifier has a top-1."
        )
    if not np.isfinite(logits).all():
        raise DataError(
            f"{name}: its scores are not finite on these images, so that a top-1 would mean nothing. "
            f"Check its weights and the scale of the images."
        )
    if labels.shape != (images,) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{name}: labels of shape {labels.shape} and type {labels.dtype} for {images} images. "
            f"Give one integer per image."
        )
    classes = logits.shape[1]
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= classes:
        wrong = lowest if lowest < 0 else highest
        raise DataError(
            f"{name}: label {wrong} is not in 0..{classes - 1}. "
            f"Check that the data set and the model have the same classes."
        )
