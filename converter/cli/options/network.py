"""Which network, and what it eats."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ...chain.values import Text, numbers, shape
from .base import Options


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """A network by name.

    Attributes:
        model: A model by name (cifar_resnet20, any torchvision classifier), your own as package.module:function, or a
            compressed .safetensors.
        checkpoint: Weights: .pth, .th, .pt or .safetensors.
        input_shape: Input, such as 3x32x32.
        classes: Outputs, if not the model's own.
    """

    model: Annotated[str, Argument(metavar="MODEL")]
    checkpoint: Path | None = None
    input_shape: Annotated[tuple[int, int, int] | None, Text(shape, "x"), Option("--input", metavar="CxHxW")] = None
    classes: Annotated[int | None, Option(min=1)] = None


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(ModelOptions):
    """A network to run on images.

    Attributes:
        mean: Of pixels scaled to 0..1.
        std: Of pixels scaled to 0..1.
        random_weights: Go on without a checkpoint, with the weights as built.
    """

    mean: Annotated[tuple[float, ...] | None, Text(numbers), Option(metavar="M,M,M")] = None
    std: Annotated[tuple[float, ...] | None, Text(numbers), Option(metavar="S,S,S")] = None
    random_weights: bool = False


@dataclass(frozen=True, kw_only=True)
class LabelOptions(Options):
    """What outputs mean.

    Attributes:
        labels: Text file with the name of an output a line, to be kept in what is written.
    """

    labels: Annotated[Path | None, Option(metavar="FILE")] = None


@dataclass(frozen=True, kw_only=True)
class TrustOptions(Options):
    """Whose code may build a network.

    Attributes:
        trust: The function of yours that a compressed file may be built by; no other code is run.
    """

    trust: Annotated[str | None, Option(metavar="PACKAGE.MODULE:FUNCTION")] = None


@dataclass(frozen=True, kw_only=True)
class FileOptions(TrustOptions, NetworkOptions):
    """A network by name or in a file.

    Attributes:
        model: A compressed .safetensors, an .onnx where that makes sense, or a model's name with --checkpoint.
    """

    model: Annotated[str, Argument(metavar="FILE_OR_MODEL")]
