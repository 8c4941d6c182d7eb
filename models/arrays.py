"""Images that fit in memory: uint8 tensors, read, augmented and normalised a batch at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .augment import Augment, augment_batch
from .errors import DataError
from .preprocess import Preprocess, shape_text


@dataclass(frozen=True)
class Arrays:
    """One split.

    Args:
        images: (n, channels, height, width) uint8.
        labels: (n,) int64, 0 or more.
    """

    images: Tensor
    labels: Tensor


class ArrayDataset(Dataset[tuple[Tensor, int]]):
    """Normalised images of one split, by index or a whole batch at a time.

    `dataset[i]` is (float32 (channels, height, width), label). A DataLoader made by `loader` asks for whole
    batches, which is what makes it fast.
    """

    def __init__(self, arrays: Arrays, preprocess: Preprocess, augment: Augment) -> None:
        self.arrays = arrays
        self.augment = augment
        std = torch.tensor(preprocess.std, dtype=torch.float32).view(-1, 1, 1)
        mean = torch.tensor(preprocess.mean, dtype=torch.float32).view(-1, 1, 1)
        # (x / 255 - mean) / std as one multiplication and one addition.
        self.scale, self.shift = 1 / (255 * std), -mean / std

    def __len__(self) -> int:
        return len(self.arrays.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        # Without this check a plain `for` over the data set would never end or fail obscurely.
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is not in a data set of {len(self)} images")
        images, labels = self.__getitems__([index % len(self)])
        return images[0], int(labels[0])

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        index = torch.as_tensor(indices)
        images = augment_batch(self.arrays.images.index_select(0, index), self.augment)
        return images.float().mul_(self.scale).add_(self.shift), self.arrays.labels.index_select(0, index)


@dataclass(frozen=True)
class ArrayData:
    """A data set of equally large images, held in memory.

    Args:
        spec: as the user wrote it.
        train_arrays: the training split.
        test_arrays: the test split, of the same image shape.
        default_augment: for training, where the user says nothing.
        class_names: in the order of the labels; empty where there are none.
    """

    spec: str
    train_arrays: Arrays
    test_arrays: Arrays
    default_augment: Augment
    class_names: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """Highest label of both splits, plus one."""
        return int(max(self.train_arrays.labels.max(), self.test_arrays.labels.max())) + 1

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.train_arrays.images.shape[1:]
        return channels, height, width

    def train(self, preprocess: Preprocess, augment: Augment | None = None) -> ArrayDataset:
        """The training split, augmented.

        Args:
            preprocess: its input shape must be the images'.
            augment: None means `default_augment`.

        Returns:
            A data set of (float32 (channels, height, width), label).

        Raises:
            DataError: the images have another shape than the network's input.
        """
        self._check_shape(preprocess)
        return ArrayDataset(self.train_arrays, preprocess, augment or self.default_augment)

    def test(self, preprocess: Preprocess) -> ArrayDataset:
        """The test split, as it is.

        Args:
            preprocess: its input shape must be the images'.

        Returns:
            A data set of (float32 (channels, height, width), label).

        Raises:
            DataError: the images have another shape than the network's input.
        """
        self._check_shape(preprocess)
        return ArrayDataset(self.test_arrays, preprocess, Augment.NONE)

    def _check_shape(self, preprocess: Preprocess) -> None:
        if preprocess.input_shape != self.image_shape:
            raise DataError(
                f"{self.spec}: the images are {shape_text(self.image_shape)}, the model's input is "
                f"{shape_text(preprocess.input_shape)} (channels x height x width); pass --input CxHxW as "
                f"{shape_text(self.image_shape)} if the model takes it, or other data."
            )
