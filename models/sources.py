"""Where in-memory images come from: scikit-learn's digits, .npz files, torchvision's data sets."""

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torchvision

from ..files import check_input, quoted
from .arrays import ArrayData, Arrays
from .augment import Augment
from .errors import DataError

NPZ_NAMES = ("x_train", "y_train", "x_test", "y_test")
TORCHVISION_SETS = ("cifar10", "cifar100", "mnist", "fashionmnist", "svhn")
_NAMES = "class_names"
_DIGITS_TEST_PER_CLASS = 50

_Array = npt.NDArray[np.generic]

_LARGEST_LABEL = 2**31 - 1


def read_digits() -> ArrayData:
    """scikit-learn's 1,797 bundled digits, 1 x 8 x 8, split once and for all: 1,297 to train, 500 to test.

    Returns:
        Ten classes, 50 test images of each; pixel values 0..16 are stretched to 0..255.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise DataError("digits: needs scikit-learn; install it with pip install 'dprp[demo]'.") from error
    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    # The legacy generator, because NumPy promises that its stream never changes: same split on every version.
    order = np.random.RandomState(0).permutation(len(labels))
    tests = [order[labels[order] == digit][:_DIGITS_TEST_PER_CLASS] for digit in range(10)]
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[np.concatenate(tests)] = True
    train = to_arrays("digits", "train", images[~is_test], labels[~is_test])
    test = to_arrays("digits", "test", images[is_test], labels[is_test])
    return ArrayData("digits", train, test, Augment.CROP, tuple("0123456789"))


def read_npz(spec: str, path: Path) -> ArrayData:
    """Images of an .npz file with `x_train`, `y_train`, `x_test` and `y_test`; never unpickles.

    Args:
        spec: as the user wrote it, for messages.
        path: the file; x is uint8 (n, height, width) or (n, height, width, channels), y integers (n,); it may have
            `class_names`, texts (classes,), as well.

    Returns:
        The two splits.

    Raises:
        DataError: the file is not there or damaged, or an array is missing or not as described.
    """
    check_input(path, error=DataError, what="an .npz file, as npz:FILE")
    found: dict[str, _Array] = {}
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise DataError(f"{spec}: holds one bare array; save {', '.join(NPZ_NAMES)} with numpy.savez.")
            missing = [name for name in NPZ_NAMES if name not in archive.files]
            if missing:
                have = ", ".join(quoted(name, 40) for name in archive.files[:8]) or "nothing"
                raise DataError(
                    f"{spec}: has no {', '.join(missing)} (it has {have}); "
                    f"save {', '.join(NPZ_NAMES)} with numpy.savez."
                )
            found = {name: archive[name] for name in (*NPZ_NAMES, _NAMES) if name in archive.files}
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(
            f"{spec}: claims arrays larger than this machine's memory; it is damaged, or needs a larger machine."
        ) from error
    # A damaged archive makes NumPy and zipfile raise nearly anything: EOFError, KeyError, zlib.error ...
    except Exception as error:
        reason = quoted(error, 120) or type(error).__name__
        raise DataError(f"{spec}: is no readable .npz file ({reason}); save it again.") from error
    train = to_arrays(spec, "train", found["x_train"], found["y_train"])
    test = to_arrays(spec, "test", found["x_test"], found["y_test"])
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"{spec}: x_train is {found['x_train'].shape} and x_test {found['x_test'].shape}; images of both "
            f"must have the same height, width and channels."
        )
    return ArrayData(spec, train, test, Augment.CROP_FLIP, _texts(spec, found.get(_NAMES)))


def _texts(spec: str, names: _Array | None) -> tuple[str, ...]:
    if names is None:
        return ()
    if names.ndim != 1 or names.dtype.kind != "U":
        raise DataError(f"{spec}: {_NAMES} is {names.dtype} {names.shape}; it must be texts, one a class.")
    return tuple(map(str, names))


def read_torchvision(spec: str, name: str, root: Path, *, download: bool) -> ArrayData:
    """One of torchvision's small data sets.

    Args:
        spec: as the user wrote it, for messages.
        name: one of TORCHVISION_SETS.
        root: the folder that torchvision keeps it in.
        download: fetch it if it is not there.

    Returns:
        torchvision's own two splits.

    Raises:
        DataError: not there and not to be downloaded, damaged, or the download failed.
    """
    try:
        with warnings.catch_warnings():
            # The published CIFAR files are old pickles, about which recent NumPy versions warn.
            warnings.simplefilter("ignore")
            (x_train, y_train, names), (x_test, y_test, _) = (
                _torchvision_split(name, root, train, download) for train in (True, False)
            )
    except ModuleNotFoundError as error:
        raise DataError(f"{spec}: torchvision needs {error.name} to read it; install {error.name}.") from error
    # torchvision checks the file formats with bare asserts.
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, AssertionError) as error:
        reason = " ".join(str(error).split()).rstrip(".")[:160] or "damaged files"
        remedy = "check the connection and the folder" if download else "pass download=True / --download to fetch it"
        raise DataError(f"{spec}: torchvision cannot read it from {root} ({reason}); {remedy}.") from error
    train = to_arrays(spec, "train", x_train, y_train)
    test = to_arrays(spec, "test", x_test, y_test)
    # A mirrored digit is no digit.
    augment = Augment.CROP if name in ("mnist", "svhn") else Augment.CROP_FLIP
    return ArrayData(spec, train, test, augment, names)


def _torchvision_split(name: str, root: Path, train: bool, download: bool) -> tuple[_Array, _Array, tuple[str, ...]]:
    sets = torchvision.datasets
    if name == "svhn":
        svhn = sets.SVHN(root, split="train" if train else "test", download=download)
        return svhn.data.transpose(0, 2, 3, 1), np.asarray(svhn.labels), tuple("0123456789")
    kinds = {
        "cifar10": sets.CIFAR10,
        "cifar100": sets.CIFAR100,
        "mnist": sets.MNIST,
        "fashionmnist": sets.FashionMNIST,
    }
    data = kinds[name](root, train=train, download=download)
    return np.asarray(data.data), np.asarray(data.targets), tuple(data.classes)


def to_arrays(spec: str, split: str, images: _Array, labels: _Array) -> Arrays:
    """Check one split and turn it into tensors.

    Args:
        spec: the data set, for messages.
        split: `train` or `test`, for messages.
        images: uint8 (n, height, width) or (n, height, width, channels).
        labels: integers (n,), 0 or more.

    Returns:
        Images as (n, channels, height, width).

    Raises:
        DataError: another type or shape, no images, or negative labels.
    """
    x, y = f"{spec}: x_{split}", f"{spec}: y_{split}"
    if images.dtype != np.uint8:
        raise DataError(f"{x} is {images.dtype}; it must be uint8, pixel values 0 to 255.")
    if images.ndim not in (3, 4):
        raise DataError(f"{x} is {images.shape}; it must be (n, height, width) or (n, height, width, channels).")
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] > 4:
        raise DataError(
            f"{x} is {images.shape}, which looks like channels first; store (n, height, width, channels)."
        )
    if images.size == 0:
        raise DataError(f"{x} is {images.shape} and holds no images; it needs at least one.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{y} is {labels.dtype}; it must be integers, the class of each image from 0 up.")
    if labels.shape != (len(images),):
        raise DataError(f"{y} is {labels.shape} for {len(images)} images; it must be ({len(images)},).")
    if int(labels.max()) > _LARGEST_LABEL:  # as unsigned 64-bit numbers, they would become negative
        raise DataError(f"{y} holds the label {labels.max()}; labels count the classes, up to {_LARGEST_LABEL:,}.")
    if labels.min() < 0:
        raise DataError(f"{y} holds the label {labels.min()}; labels count from 0 up.")
    channels_last = images if images.ndim == 4 else images[..., None]
    channels_first = np.ascontiguousarray(channels_last.transpose(0, 3, 1, 2))
    return Arrays(torch.from_numpy(channels_first), torch.from_numpy(labels.astype(np.int64)))
