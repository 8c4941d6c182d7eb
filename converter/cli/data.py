"""DATA becomes batches that fit a network."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.utils.data import DataLoader

from ...models import ImageData, Preprocess, check_labels, load_data, loader
from ...models.augment import Augment
from .errors import CliError

Loader = DataLoader[tuple[Tensor, int]]


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

    def train(self, augment: str | None = None) -> Loader:
        """Shuffled and augmented; None for what suits the data.

        Raises:
            CliError: no such augmentation.
            DataError: images that do not fit the network, or a batch size below 1.
        """
        names = [kind.value for kind in Augment]
        if augment is not None and augment not in names:
            raise CliError(f"augmentation {augment!r} is not one of {', '.join(names)}; choose one of these")
        images = self.data.train(self.preprocess, None if augment is None else Augment(augment))
        return loader(images, self.batch_size, shuffle=True, seed=self.seed, workers=self.workers)

    def test(self, limit: int | None = None) -> Loader:
        """All test images in their order, or a random choice of `limit`.

        Raises:
            DataError: images that do not fit the network, or a batch size or limit below 1.
        """
        images = self.data.test(self.preprocess)
        return loader(images, self.batch_size, limit=limit, seed=self.seed, workers=self.workers)


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
