"""`dprp evaluate`: top-1 of a compressed checkpoint, an ONNX file or a named model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...export import evaluate_onnx
from ...models import load_data
from ..analysis.accuracy import evaluate as evaluate_model
from .console import note, silent
from .data import Batches, open_data
from .device import pick_device
from .errors import CliError
from .metadata import onnx_preprocess
from .network import open_network


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


def evaluate(
    model: str,
    *,
    data: str,
    checkpoint: Path | str | None = None,
    limit: int | None = None,
    batch_size: int = 128,
    classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    random_weights: bool = False,
    trust: str | None = None,
    workers: int = 0,
    download: bool = False,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = False,
) -> Score:
    """Scores a classifier on test images.

    Args:
        model: a compressed `.safetensors`, an `.onnx`, or a name with a checkpoint.
        data: as `dprp.models.load_data` takes it.
        checkpoint: weights of a named model.
        limit: so many images only, a random choice.
        batch_size: images in a batch.
        classes, input_shape, mean, std: None for the architecture's own; an `.onnx` of ours says its own.
        random_weights: go on without a checkpoint.
        trust: `package.module:function` that a compressed file may be built by.
        workers: processes that read images ahead.
        download: let torchvision fetch its data set.
        seed: of the choice of images, and of random weights.
        device: auto, cpu or cuda; an `.onnx` runs on the CPU.
        quiet: show no notes.

    Raises:
        CliError, ConverterError, ModelsError, ExportError: one sentence each.
    """
    where = pick_device(device)
    say = silent if quiet else note
    if Path(model).suffix.lower() == ".onnx":
        if checkpoint is not None or classes is not None or random_weights:
            raise CliError(f"{model}: an ONNX file brings its own weights; leave --checkpoint and --classes out")
        if device == "cuda":
            raise CliError(f"{model}: ONNX files are scored on the CPU; leave --device cuda out")
        return _score_onnx(model, data, limit, batch_size, (input_shape, mean, std), workers, download, seed, say)
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
    images = open_data(data, network.classes(), download=download)
    test = Batches(images, network.preprocess, batch_size, seed, workers).test(limit)
    found = evaluate_model(network.model.to(where), test)
    return Score(found.top1, found.images)


def _score_onnx(
    path: str,
    data: str,
    limit: int | None,
    batch_size: int,
    given: tuple[tuple[int, int, int] | None, tuple[float, ...] | None, tuple[float, ...] | None],
    workers: int,
    download: bool,
    seed: int,
    say: Callable[[str], None],
) -> Score:
    preprocess, remark = onnx_preprocess(path, *given)
    images = load_data(data, download=download)
    test = Batches(images, preprocess, batch_size, seed, workers).test(limit)
    if remark:
        say(remark)
    found = evaluate_onnx(path, test)
    return Score(found.top1, found.images)
