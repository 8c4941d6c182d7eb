"""Image files in one folder per class, of any size."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from ..files import check_input
from .augment import Augment
from .errors import DataError
from .preprocess import Preprocess

_LARGEST_IMAGE = 2**28


@dataclass(frozen=True)
class FolderData:
    """A tree DIR/train/CLASS/IMAGE and DIR/val/CLASS/IMAGE; classes are numbered in alphabetical order.

    Args:
        spec: as the user wrote it.
        train_dir: one folder per class.
        test_dir: the same classes.
        class_names: in the order of the labels.
    """

    spec: str
    train_dir: Path
    test_dir: Path
    class_names: tuple[str, ...]
    default_augment: Augment = Augment.CROP_FLIP

    @property
    def classes(self) -> int:
        """Number of class folders."""
        return len(self.class_names)

    @property
    def image_shape(self) -> None:
        """None: images of any size are scaled and cropped to the network's input."""
        return None

    def train(self, preprocess: Preprocess, augment: Augment | None = None) -> Dataset[tuple[Tensor, int]]:
        """The training images, at the network's input size.

        Args:
            preprocess: one channel reads gray images, three read colour (gray files are converted).
            augment: CROP takes a random part of the image at a random scale, CROP_FLIP mirrors half of them
                too, RAND changes their colours and shapes as well, NONE treats them as test images; None means
                `default_augment`.

        Returns:
            A data set of (float32 (channels, height, width), label).

        Raises:
            DataError: the network's input has neither one nor three channels.
        """
        augment = augment or self.default_augment
        if augment is Augment.NONE:
            return self._dataset(self.train_dir, preprocess, _centre(preprocess))
        _, height, width = preprocess.input_shape
        steps: list[object] = [v2.RandomResizedCrop((height, width))]
        if augment is not Augment.CROP:
            steps.append(v2.RandomHorizontalFlip())
        if augment is Augment.RAND:
            steps.append(v2.RandAugment())
        return self._dataset(self.train_dir, preprocess, steps)

    def test(self, preprocess: Preprocess) -> Dataset[tuple[Tensor, int]]:
        """The test images: the short side scaled to 256/224 of the network's input, then the centre.

        Args:
            preprocess: one channel reads gray images, three read colour (gray files are converted).

        Returns:
            A data set of (float32 (channels, height, width), label).

        Raises:
            DataError: the network's input has neither one nor three channels.
        """
        return self._dataset(self.test_dir, preprocess, _centre(preprocess))

    def _dataset(self, root: Path, preprocess: Preprocess, steps: list[object]) -> Dataset[tuple[Tensor, int]]:
        readers = {1: _read_gray, 3: _read_colour}
        channels = preprocess.input_shape[0]
        if channels not in readers:
            raise DataError(
                f"{self.spec}: image files have 1 or 3 channels, the model's input has {channels}; pass "
                f"--input CxHxW with C 1 or 3."
            )
        transform = v2.Compose(
            [
                *steps,
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(preprocess.mean), list(preprocess.std)),
                v2.ToPureTensor(),
            ]
        )
        dataset: Dataset[tuple[Tensor, int]] = torchvision.datasets.ImageFolder(
            str(root), transform=transform, loader=readers[channels]
        )
        return dataset


def open_folder(spec: str, root: Path) -> FolderData:
    """Find the two splits and their classes; reads no image.

    Args:
        spec: as the user wrote it, for messages.
        root: holds `train` and either `val` or `test`; of both, `val` is taken: `test` often has no labels.

    Returns:
        The data set.

    Raises:
        DataError: a folder is missing or empty, or the two splits have different classes.
    """
    if not root.is_dir():
        raise DataError(f"{spec}: no such folder {root}; pass folder:DIR with train and val (or test) inside.")
    train_dir = root / "train"
    if not train_dir.is_dir():
        raise DataError(f"{spec}: has no folder train; it must hold train/CLASS/IMAGE.")
    test_dir = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    if test_dir is None:
        raise DataError(f"{spec}: has neither a folder val nor test; it must hold val/CLASS/IMAGE.")
    names, test_names = _class_names(spec, train_dir), _class_names(spec, test_dir)
    if names != test_names:
        alone = sorted(set(names) ^ set(test_names))
        raise DataError(
            f"{spec}: train and {test_dir.name} have different classes ({', '.join(alone[:6])} in one only); "
            f"labels would not agree, so give both the same folders."
        )
    return FolderData(spec, train_dir, test_dir, names)


def _class_names(spec: str, split: Path) -> tuple[str, ...]:
    try:
        return tuple(torchvision.datasets.ImageFolder(str(split)).classes)
    # torchvision says FileNotFoundError both for no class folder and for a class without images.
    except FileNotFoundError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"{spec}: {split.name} needs one folder per class with images in it ({reason}).") from error


def _centre(preprocess: Preprocess) -> list[object]:
    _, height, width = preprocess.input_shape
    return [v2.Resize(max(height, width) * 256 // 224), v2.CenterCrop((height, width))]


def _read_colour(path: str) -> Image.Image:
    return _read(path, "RGB")


def _read_gray(path: str) -> Image.Image:
    return _read(path, "L")


def _read(path: str, mode: str) -> Image.Image:
    check_input(Path(path), error=DataError, largest=_LARGEST_IMAGE, what="an image")
    try:
        with Image.open(path) as image:  # Pillow refuses images of 180 million pixels and more
            if image.mode[0] in "IF":
                raise DataError(
                    f"{path}: has pixels of mode {image.mode}, which would be cut off at 255; save it with 8 bits a "
                    f"channel."
                )
            # Pillow warns when a palette with transparency goes to RGB directly.
            source = image.convert("RGBA") if "transparency" in image.info else image
            converted: Image.Image = source.convert(mode)
            return converted
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: unpacks to more pixels than any photograph has; replace or delete it.") from error
    except DataError:
        raise
    except Exception as error:  # Pillow has fifty readers, and a damaged file makes each raise something else
        raise DataError(f"{path}: cannot be read as an image; replace or delete the file.") from error
