"""DATA becomes batches that fit a network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from ...models import ImageData, Mix, Preprocess, check_labels, load_data, loader
from ...models.augment import Augment
from ..analysis.inputs import Samples, joined
from ..errors import OptionError
from .network import Network

Loader = DataLoader[tuple[Tensor, int]]

CalibrationBatches = Iterable[tuple[Samples, Any]]
"""Samples and their labels, which nobody reads."""


@dataclass(frozen=True)
class Batches:
    """Batches of one data set for one network.

    Attributes:
        data: where the images are.
        preprocess: how they become inputs.
        batch_size: images in a batch, >= 1.
        seed: of shuffling and of choosing some.
        workers: processes that read ahead.
    """

    data: ImageData
    preprocess: Preprocess
    batch_size: int
    seed: int = 0
    workers: int = 0

    def train(self, augment: str | None = None, mix: str = Mix.NONE.value, classes: int = 0) -> Loader:
        """Shuffled and augmented.

        Args:
            augment: None for what suits the data.
            mix: mix images in pairs, or none.
            classes: outputs of the network, where they are mixed.

        Raises:
            OptionError: no such augmentation.
            DataError: images that do not fit the network, or a batch size below 1.
        """
        names = [kind.value for kind in Augment]
        if augment is not None and augment not in names:
            raise OptionError(f"augmentation {augment!r} is not one of {', '.join(names)}; choose one of these")
        images = self.data.train(self.preprocess, None if augment is None else Augment(augment))
        return loader(
            images,
            self.batch_size,
            shuffle=True,
            seed=self.seed,
            workers=self.workers,
            mix=Mix(mix),
            classes=classes,
        )

    def calibration(self, images: int) -> Loader:
        """A random choice of training images, as they are, and some more behind them to judge by.

        Raises:
            DataError: images that do not fit the network, or fewer than one asked for.
        """
        plain = self.data.train(self.preprocess, Augment.NONE)
        limit = images + held_out(images) if images > 0 else images
        return loader(plain, self.batch_size, limit=limit, seed=self.seed, workers=self.workers)

    def test(self, limit: int | None = None) -> Loader:
        """All test images in their order, or a random choice of `limit`.

        Raises:
            DataError: images that do not fit the network, or a batch size or limit below 1.
        """
        images = self.data.test(self.preprocess)
        return loader(images, self.batch_size, limit=limit, seed=self.seed, workers=self.workers)


def held_out(images: int) -> int:
    """Images to judge a network by that was fitted on so many others."""
    return max(50, images // 5)


def split_calibration(batches: CalibrationBatches, images: int) -> tuple[Samples, Samples]:
    """Images to fit on, and others to judge by.

    Args:
        batches: from `Batches.calibration`.
        images: how many to fit on at most; where the data set has too few, one in five is kept to judge by.
    """
    every = joined([batch for batch, _ in batches])
    fitted = images if len(every) >= images + held_out(images) else max(1, len(every) - max(1, len(every) // 5))
    return every[:fitted], every[fitted:]


def open_calibration(spec: str | None, network: Network, images: int, seed: int, *, download: bool) -> Loader | None:
    """Calibration images for a network, or None when there are to be none.

    Args:
        spec: as `dprp.models.load_data` takes it; None for none.
        network: says what the images become.
        images: how many at most; 0 for none.
        seed: of the choice.
        download: let torchvision fetch it.

    Raises:
        DataError: the data cannot be read, or does not fit the network.
    """
    if spec is None or images == 0:
        return None
    data = load_data(spec, download=download)  # labels are not used, so they are not checked
    return Batches(data, network.preprocess, min(images, 128), seed).calibration(images)


def data_file(spec: str | None) -> Path | None:
    """The file that a data set is read from; None where it is none, or a folder."""
    kind, _, where = (spec or "").partition(":")
    return Path(where).expanduser() if kind == "npz" and where else None


def open_data(spec: str, classes: int, *, download: bool = False) -> ImageData:
    """Opens a data set for a classifier.

    Args:
        spec: as `dprp.models.load_data` takes it.
        classes: outputs of the network.
        download: let torchvision fetch it.

    Raises:
        DataError: it cannot be read, or has labels outside of the classes.
    """
    data = load_data(spec, download=download)
    check_labels(data, classes)
    return data
