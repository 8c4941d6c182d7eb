"""Images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from typer import Option

from .base import Options

Augmentation = Literal["none", "crop", "crop-flip", "rand"]
Mixing = Literal["none", "mixup", "cutmix"]


@dataclass(frozen=True, kw_only=True)
class DownloadOptions(Options):
    """Where images may come from.

    Attributes:
        download: Let torchvision fetch its data set.
    """

    download: bool = False


@dataclass(frozen=True, kw_only=True)
class DataOptions(DownloadOptions):
    """Images in batches.

    Attributes:
        data: digits, npz:FILE, folder:DIR, or a torchvision set as cifar10:ROOT.
        batch_size: Images in a batch.
        workers: Processes that read images ahead.
    """

    data: Annotated[str, Option(metavar="DATA")]
    batch_size: Annotated[int, Option(min=1, max=65_536)] = 128
    workers: Annotated[int, Option(min=0)] = 0


@dataclass(frozen=True, kw_only=True)
class TrainingDataOptions(DataOptions):
    """Images to train on.

    Attributes:
        augment: Of training images, if not as usual.
        mix: Mix training images in pairs.
    """

    augment: Augmentation | None = None
    mix: Annotated[Mixing | None, Option(show_default="cutmix, where labels have no part")] = None


@dataclass(frozen=True, kw_only=True)
class ScoringDataOptions(DataOptions):
    """Images to score on.

    Attributes:
        limit: Use so many test images, at random.
    """

    limit: Annotated[int | None, Option(min=1)] = None
