"""`dprp evaluate`: top-1 of a compressed checkpoint, an ONNX file or a named model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...export import evaluate_onnx
from ...models import ImageData, Preprocess, load_data
from ..analysis.accuracy import evaluate as evaluate_model
from ..chain.data import Batches, Loader, open_data
from ..chain.device import pick_device
from ..chain.metadata import onnx_preprocess
from ..errors import OptionError
from .asked import asked_network
from .console import note
from .verbs import EvaluateOptions


@dataclass(frozen=True)
class Score:
    """Top-1 in percent, and the number of test images it was counted on."""

    top1: float
    images: int

    def __str__(self) -> str:
        return f"{self.top1:.2f} % top-1 on {self.images:,} test images"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"top1": self.top1, "images": self.images}


def evaluate(asked: EvaluateOptions) -> Score:
    """Scores a classifier on test images.

    Raises:
        ConverterError, ModelsError, ExportError: one sentence each.
    """
    where = pick_device(asked.device)
    if Path(asked.model).suffix.lower() == ".onnx":
        return _evaluate_onnx(asked)
    network = asked_network(asked, seed=asked.seed, trust=asked.trust)
    images = open_data(asked.data, network.classes(), download=asked.download)
    found = evaluate_model(network.model.to(where), _batches(asked, images, network.preprocess))
    return Score(found.top1, found.images)


def _evaluate_onnx(asked: EvaluateOptions) -> Score:
    path = asked.model
    if asked.checkpoint is not None or asked.classes is not None or asked.random_weights:
        raise OptionError(f"{path}: an ONNX file brings its own weights; leave --checkpoint and --classes out")
    if asked.device == "cuda":
        raise OptionError(f"{path}: ONNX files are scored on the CPU; leave --device cuda out")
    preprocess, remark = onnx_preprocess(path, asked.input_shape, asked.mean, asked.std)
    if remark and not asked.quiet:
        note(remark)
    found = evaluate_onnx(path, _batches(asked, load_data(asked.data, download=asked.download), preprocess))
    return Score(found.top1, found.images)


def _batches(asked: EvaluateOptions, images: ImageData, preprocess: Preprocess) -> Loader:
    return Batches(images, preprocess, asked.batch_size, asked.seed, asked.workers).test(asked.limit)
