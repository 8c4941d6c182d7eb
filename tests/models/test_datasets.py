import gzip
import hashlib
import io
import pickle
import struct
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision

from dprp.models import (
    Augment,
    DataError,
    ModelInfo,
    Preprocess,
    check_labels,
    info,
    load_data,
    preprocess_for,
)

RGB = Preprocess((3, 12, 10), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def arrays(n_train: int = 5, n_test: int = 3, shape: tuple[int, ...] = (12, 10, 3)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (n_train, *shape), dtype=np.uint8),
        "y_train": rng.integers(0, 4, n_train),
        "x_test": rng.integers(0, 256, (n_test, *shape), dtype=np.uint8),
        "y_test": np.full(n_test, 6),
    }


def saved(folder: Path, content: dict[str, np.ndarray]) -> str:
    np.savez(folder / "d.npz", **content)
    return f"npz:{folder / 'd.npz'}"


def test_npz_round_trip(tmp_path: Path) -> None:
    content = arrays()
    data = load_data(saved(tmp_path, content))
    assert data.classes == 7
    assert data.image_shape == (3, 12, 10)
    assert data.default_augment is Augment.CROP_FLIP
    assert data.class_names == ()
    names = np.array(["cat", "dog", "🦊"])
    assert load_data(saved(tmp_path, content | {"class_names": names})).class_names == ("cat", "dog", "🦊")
    with pytest.raises(DataError, match=r"class_names is int64 \(3,\); it must be texts, one a class"):
        load_data(saved(tmp_path, content | {"class_names": np.arange(3)}))
    test = data.test(RGB)
    assert len(test) == 3
    for index in range(3):
        image, label = test[index]
        pixels = torch.from_numpy(content["x_test"][index]).permute(2, 0, 1).float() / 255
        expected = (pixels - torch.tensor(RGB.mean).view(3, 1, 1)) / torch.tensor(RGB.std).view(3, 1, 1)
        assert image.dtype == torch.float32
        torch.testing.assert_close(image, expected, rtol=1e-5, atol=1e-6)
        assert label == 6
        assert isinstance(label, int)


def test_gray_npz_has_one_channel(tmp_path: Path) -> None:
    data = load_data(saved(tmp_path, arrays(shape=(8, 9))))
    assert data.image_shape == (1, 8, 9)
    assert data.test(Preprocess((1, 8, 9), (0.0,), (1.0,)))[0][0].shape == (1, 8, 9)


def test_train_augments_by_default_and_not_when_told(tmp_path: Path) -> None:
    content = arrays()
    data = load_data(saved(tmp_path, content))
    plain = data.train(RGB, Augment.NONE)
    augmented = data.train(RGB)
    torch.manual_seed(0)
    assert not torch.equal(augmented.__getitems__([0, 1, 2, 3, 4])[0], plain.__getitems__([0, 1, 2, 3, 4])[0])
    assert torch.equal(plain[4][0], plain[4][0])
    assert torch.equal(plain[-1][0], plain[4][0])
    with pytest.raises(IndexError):
        plain[5]


def test_whole_batch_equals_single_images(tmp_path: Path) -> None:
    data = load_data(saved(tmp_path, arrays())).train(RGB, Augment.NONE)
    images, labels = data.__getitems__([3, 0, 3])
    for row, index in enumerate((3, 0, 3)):
        image, label = data[index]
        assert torch.equal(images[row], image)
        assert labels[row] == label


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_test": None}, r"has no x_test \(it has x_train, y_train, y_test\); save x_train, y_train, x_test"),
        ({"x_train": np.zeros((5, 12, 10, 3))}, r"x_train is float64; it must be uint8"),
        ({"x_train": np.zeros((5, 12), np.uint8)}, r"x_train is \(5, 12\); it must be \(n, height, width\)"),
        ({"x_train": np.zeros((5, 3, 12, 10), np.uint8)}, r"x_train is \(5, 3, 12, 10\), which looks like chann"),
        ({"x_train": np.zeros((0, 12, 10, 3), np.uint8)}, r"x_train is \(0, 12, 10, 3\) and holds no images"),
        ({"x_train": np.zeros((5, 9, 10, 3), np.uint8)}, r"x_train is \(5, 9, 10, 3\) and x_test \(3, 12, 10, 3\)"),
        ({"y_train": np.zeros(4, int)}, r"y_train is \(4,\) for 5 images; it must be \(5,\)"),
        ({"y_train": np.zeros((5, 1), int)}, r"y_train is \(5, 1\) for 5 images"),
        ({"y_train": np.zeros(5)}, r"y_train is float64; it must be integers"),
        ({"y_test": np.array([0, -1, 2])}, r"y_test holds the label -1; labels count from 0 up"),
    ],
)
def test_npz_errors(tmp_path: Path, change: dict[str, np.ndarray | None], message: str) -> None:
    content = {name: value for name, value in (arrays() | change).items() if value is not None}
    spec = saved(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        load_data(spec)
    assert str(caught.value).startswith(spec)
    assert "\n" not in str(caught.value)


def test_damaged_npz_files(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "whole.npz", **arrays(500))
    whole = (tmp_path / "whole.npz").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0xFF
    np.save(tmp_path / "bare.npy", np.zeros(3))
    np.savez(tmp_path / "objects.npz", **arrays() | {"x_train": np.array([{}, "text"], dtype=object)})
    files = {
        "half.npz": whole[: len(whole) // 2],
        "flipped.npz": bytes(flipped),
        "text.npz": b"hello",
        "objects.npz": (tmp_path / "objects.npz").read_bytes(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}: is no readable .npz file \(.+\); save it again"):
            load_data(f"npz:{tmp_path / name}")
    (tmp_path / "bare.npz").write_bytes((tmp_path / "bare.npy").read_bytes())
    with pytest.raises(DataError, match="holds one bare array"):
        load_data(f"npz:{tmp_path / 'bare.npz'}")
    with pytest.raises(DataError, match="no such file"):
        load_data(f"npz:{tmp_path / 'none.npz'}")


@pytest.mark.parametrize("spec", ["imagenet:x", "digit", "", "digits:x", "data.npz"])
def test_unknown_data_lists_what_there_is(spec: str) -> None:
    with pytest.raises(DataError, match=r"unknown data; pass one of digits, npz:FILE, folder:DIR, cifar10:ROOT"):
        load_data(spec)


@pytest.mark.parametrize("spec", ["npz:", "npz", "folder:", "cifar10"])
def test_data_without_a_path(spec: str) -> None:
    with pytest.raises(DataError, match=rf"'{spec}': says no path; write {spec.rstrip(':')}:PATH"):
        load_data(spec)


def test_digits_split_is_fixed_disjoint_and_balanced() -> None:
    first, second = load_data("digits"), load_data("digits")
    assert first.image_shape == (1, 8, 8)
    assert first.classes == 10
    assert first.default_augment is Augment.CROP
    images, labels = first.test_arrays.images, first.test_arrays.labels
    assert torch.equal(images, second.test_arrays.images)
    assert labels.bincount().tolist() == [50] * 10
    assert len(first.train_arrays.labels) == 1297
    # A checksum of pixels holds the split: shipped weights must not have seen the test images.
    assert hashlib.sha256(images.numpy().tobytes()).hexdigest()[:16] == "d465f18215ac5f58"
    assert (int(images.min()), int(images.max())) == (0, 255)


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"needs scikit-learn; install it with pip install 'dprp\[demo\]'"):
        load_data("digits")


def test_other_image_shape_than_the_model_s() -> None:
    with pytest.raises(DataError, match=r"images are 1x8x8, the model's input is 3x32x32 .*pass --input CxHxW"):
        load_data("digits").train(preprocess_for(info("cifar_resnet20")))
    with pytest.raises(DataError, match=r"images are 1x8x8, the model's input is 3x32x32"):
        load_data("digits").test(preprocess_for(info("cifar_resnet20")))


def test_check_labels() -> None:
    data = load_data("digits")
    check_labels(data, 10)
    check_labels(data, 11)
    with pytest.raises(DataError, match=r"digits: labels go up to 9, the model has 9 classes \(0 to 8\); pass --cl"):
        check_labels(data, 9)


@pytest.mark.parametrize(
    ("shape", "mean", "std", "message"),
    [
        ((3, 0, 8), (0.0,) * 3, (1.0,) * 3, "input shape 3x0x8 is not allowed"),
        ((1, 8, 8), (0.0,) * 3, (1.0,) * 3, "needs 1 means and stds, one per channel; got 3 and 3"),
        ((1, 8, 8), (0.0,), (0.0,), "each value must be above 0"),
        ((1, 8, 8), (0.0,), (float("nan"),), "each value must be above 0"),
    ],
)
def test_preprocess_checks_itself(
    shape: tuple[int, int, int], mean: tuple[float, ...], std: tuple[float, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Preprocess(shape, mean, std)


def test_preprocess_for_another_input() -> None:
    about = ModelInfo("mine:net", None, (0.2, 0.4, 0.6), (0.1, 0.2, 0.3))
    with pytest.raises(DataError, match=r"mine:net: .* pass --input CxHxW"):
        preprocess_for(about)
    assert preprocess_for(about, (3, 9, 9)) == Preprocess((3, 9, 9), about.mean, about.std)
    gray = preprocess_for(about, (1, 9, 9))
    assert gray.mean == pytest.approx((0.4,))
    assert gray.std == pytest.approx((0.2,))


def idx(values: np.ndarray) -> bytes:
    """MNIST's file format."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


@pytest.mark.parametrize(
    ("kind", "folder", "augment"),
    [("mnist", "MNIST", Augment.CROP), ("fashionmnist", "FashionMNIST", Augment.CROP_FLIP)],
)
def test_mnist_and_fashionmnist(tmp_path: Path, kind: str, folder: str, augment: Augment) -> None:
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28))
    for split, count in (("train", 4), ("t10k", 2)):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(idx(images[:count]))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(idx(np.arange(count)))
    data = load_data(f"{kind}:{tmp_path}")
    assert data.image_shape == (1, 28, 28)
    assert data.classes == 4
    assert data.default_augment is augment
    assert torch.equal(data.train_arrays.images[:, 0], torch.from_numpy(images.astype(np.uint8)))
    assert data.test_arrays.labels.tolist() == [0, 1]


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    batch = pickle.dumps({"data": pixels, "labels": [0, 1, 2, 3]}, protocol=2)
    meta = pickle.dumps({"label_names": list("abcd")}, protocol=2)
    for name, content in (("batch", batch), ("meta", meta)):
        (base / name).write_bytes(content)
    kind = torchvision.datasets.CIFAR10
    listed = [["batch", hashlib.md5(batch).hexdigest()]]
    monkeypatch.setattr(kind, "train_list", listed)
    monkeypatch.setattr(kind, "test_list", listed)
    monkeypatch.setattr(
        kind, "meta", {"filename": "meta", "key": "label_names", "md5": hashlib.md5(meta).hexdigest()}
    )
    data = load_data(f"cifar10:{tmp_path}")
    assert data.image_shape == (3, 32, 32)
    assert data.classes == 4
    assert torch.equal(data.train_arrays.images, torch.from_numpy(pixels.reshape(4, 3, 32, 32)))


def test_svhn_is_channels_last_inside_and_never_mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    fake = SimpleNamespace(data=pixels, labels=np.array([0, 9]))
    monkeypatch.setattr(torchvision.datasets, "SVHN", lambda root, split, download: fake)
    data = load_data("svhn:anywhere")
    assert torch.equal(data.train_arrays.images, torch.from_numpy(pixels))
    assert data.default_augment is Augment.CROP


@pytest.mark.parametrize("kind", ["cifar10", "cifar100", "mnist", "fashionmnist", "svhn"])
def test_torchvision_data_is_not_downloaded_unasked(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "none"
    with pytest.raises(DataError, match=rf"{kind}:.*torchvision cannot read it from .*--download to fetch it"):
        load_data(f"{kind}:{root}")
    assert not root.exists()


def test_failed_download_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def offline(root: Path, train: bool, download: bool) -> None:
        asked.append(download)
        raise OSError("Network is unreachable\nreally")

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", offline)
    with pytest.raises(DataError, match=r"\(Network is unreachable really\); check the connection") as caught:
        load_data(f"cifar100:{tmp_path}", download=True)
    assert asked == [True]
    assert "\n" not in str(caught.value)


def test_damaged_mnist(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{split}-{kind}-ubyte").write_bytes(gzip.compress(b"x"))
    with pytest.raises(DataError, match="torchvision cannot read it"):
        load_data(f"mnist:{tmp_path}")


def test_labels_that_would_wrap_are_refused(tmp_path: Path) -> None:
    wrong = arrays() | {"y_train": np.full(5, 2**64 - 1, dtype=np.uint64)}
    with pytest.raises(DataError, match=r"y_train holds the label 18446744073709551615; labels count the classes"):
        load_data(saved(tmp_path, wrong))


def test_an_array_that_claims_more_than_the_memory_is_refused(tmp_path: Path) -> None:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 1000, 1000, 1)}
    )
    np.savez(tmp_path / "d.npz", **{name: array for name, array in arrays().items() if name != "x_train"})
    with zipfile.ZipFile(tmp_path / "d.npz", "a") as archive:
        archive.writestr("x_train.npy", head.getvalue())
    with pytest.raises(DataError, match=r"claims arrays larger than this machine's memory"):
        load_data(f"npz:{tmp_path / 'd.npz'}")
