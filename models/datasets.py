"""Data sets by a short text: `digits`, `npz:FILE`, `folder:DIR`, `cifar10:ROOT` ..."""

from pathlib import Path
from typing import Protocol

from torch import Tensor
from torch.utils.data import Dataset

from .augment import Augment
from .errors import DataError
from .folder import open_folder
from .preprocess import Preprocess
from .sources import TORCHVISION_SETS, read_digits, read_npz, read_torchvision


class ImageData(Protocol):
    """Labelled images in two splits; what `load_data` returns."""

    @property
    def spec(self) -> str:
        """As the user wrote it."""

    @property
    def classes(self) -> int:
        """Highest label of both splits plus one, or the number of class folders."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels in their order, or none where the data has none."""

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(channels, height, width), or None where images of any size are scaled to fit."""

    @property
    def default_augment(self) -> Augment:
        """What `train` does when not told."""

    def train(self, preprocess: Preprocess, augment: Augment | None = None) -> Dataset[tuple[Tensor, int]]:
        """The training split, of (float32 (channels, height, width), label); None: `default_augment`."""

    def test(self, preprocess: Preprocess) -> Dataset[tuple[Tensor, int]]:
        """The test split, of (float32 (channels, height, width), label)."""


def load_data(spec: str, *, download: bool = False) -> ImageData:
    """Open a data set.

    Args:
        spec: `digits` (scikit-learn's, bundled with it); `npz:FILE` with uint8 `x_train` and `x_test` of
            (n, height, width[, channels]) and integer `y_train` and `y_test`, perhaps with texts `class_names`;
            `folder:DIR` with train/CLASS/IMAGE and val/ or test/CLASS/IMAGE; `cifar10:ROOT`, `cifar100:ROOT`,
            `mnist:ROOT`, `fashionmnist:ROOT` or `svhn:ROOT`, where ROOT is the folder that torchvision keeps it in.
        download: let torchvision fetch its data set; nothing is ever downloaded otherwise.

    Returns:
        Both splits.

    Raises:
        DataError: unknown kind, or the data is not there, damaged, or not as described.
    """
    kind, colon, where = spec.partition(":")
    if spec == "digits":
        return read_digits()
    if kind not in ("npz", "folder", *TORCHVISION_SETS):
        allowed = ", ".join(("digits", "npz:FILE", "folder:DIR", *(f"{name}:ROOT" for name in TORCHVISION_SETS)))
        raise DataError(f"{spec!r}: unknown data; pass one of {allowed}.")
    if not colon or not where:
        raise DataError(f"{spec!r}: says no path; write {kind}:PATH.")
    path = Path(where).expanduser()
    if kind == "npz":
        return read_npz(spec, path)
    if kind == "folder":
        return open_folder(spec, path)
    return read_torchvision(spec, kind, path, download=download)


def check_labels(data: ImageData, classes: int) -> None:
    """Refuse data whose labels the model has no output for.

    Args:
        data: from `load_data`.
        classes: outputs of the model.

    Raises:
        DataError: a label is not in 0..classes-1.
    """
    if data.classes > classes:
        raise DataError(
            f"{data.spec}: labels go up to {data.classes - 1}, the model has {classes} classes (0 to "
            f"{classes - 1}); pass --classes {data.classes} or other data."
        )
