import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dprp.models import Augment, DataError, Preprocess, load_data, loader

INPUT = Preprocess((3, 14, 14), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two classes of plain colours: cat is red, dog blue; sizes and modes differ."""
    for split in ("train", "val"):
        for name, colour in (("cat", (255, 0, 0)), ("dog", (0, 0, 255))):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number, size in enumerate(((20, 30), (40, 16))):
                Image.new("RGB", size, colour).save(folder / f"{number}.png")
    return tmp_path


def test_images_of_any_size_become_the_network_s_input(tree: Path) -> None:
    data = load_data(f"folder:{tree}")
    assert data.classes == 2
    assert data.image_shape is None
    assert data.default_augment is Augment.CROP_FLIP
    for dataset in (data.train(INPUT), data.train(INPUT, Augment.CROP), data.test(INPUT)):
        assert len(dataset) == 4
        assert type(dataset[0][0]) is torch.Tensor
        for images, labels in loader(dataset, 4):
            assert images.shape == (4, 3, 14, 14)
            assert images.dtype == torch.float32
            assert labels.tolist() == [0, 0, 1, 1]
            red, _, blue = images.mean((2, 3)).unbind(1)
            torch.testing.assert_close(red, torch.tensor([1.0, 1, 0, 0]))
            torch.testing.assert_close(blue, torch.tensor([0.0, 0, 1, 1]))


def test_normalisation_comes_last(tree: Path) -> None:
    pre = Preprocess((3, 14, 14), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    image, _ = load_data(f"folder:{tree}").test(pre)[0]
    torch.testing.assert_close(image.mean((1, 2)), torch.tensor([2.0, -2.0, -2.0]))


def test_only_training_images_are_random(tree: Path) -> None:
    rng = np.random.default_rng(0)
    for path in tree.rglob("*.png"):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    data = load_data(f"folder:{tree}")
    torch.manual_seed(0)
    test, train, plain = data.test(INPUT), data.train(INPUT), data.train(INPUT, Augment.NONE)
    assert torch.equal(test[0][0], test[0][0])
    assert torch.equal(plain[0][0], plain[0][0])
    assert not torch.equal(train[0][0], train[0][0])


def test_gray_and_palette_files_become_rgb_and_rgb_gray(tree: Path) -> None:
    folder = tree / "train" / "cat"
    shutil.rmtree(folder)
    folder.mkdir()
    Image.new("L", (20, 20), 128).save(folder / "gray.png")
    palette = Image.new("P", (20, 20))
    palette.putpalette([0, 0, 0, 9, 9, 9, 99, 99, 99])
    # Transparency of more than one colour is what Pillow warns about, and warnings are errors here.
    palette.save(folder / "palette.png", transparency=b"\0\1\2")
    Image.new("RGBA", (20, 20)).save(folder / "rgba.png")
    data = load_data(f"folder:{tree}")
    image, _ = data.train(INPUT, Augment.NONE)[0]
    torch.testing.assert_close(image, torch.full((3, 14, 14), 128 / 255))
    assert data.train(INPUT)[1][0].shape == (3, 14, 14)
    assert data.train(INPUT)[2][0].shape == (3, 14, 14)
    one = Preprocess((1, 14, 10), (0.0,), (1.0,))
    assert data.test(one)[0][0].shape == (1, 14, 10)


def test_val_is_taken_before_test_and_test_will_do(tree: Path) -> None:
    shutil.copytree(tree / "val", tree / "test")
    assert load_data(f"folder:{tree}").test_dir.name == "val"
    shutil.rmtree(tree / "val")
    assert load_data(f"folder:{tree}").test_dir.name == "test"


def test_errors(tree: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(DataError, match=match) as caught:
            load_data(f"folder:{tree}")
        assert "\n" not in str(caught.value)

    with pytest.raises(DataError, match="no such folder"):
        load_data(f"folder:{tree / 'none'}")
    (tree / "val" / "emu").mkdir()
    refused(r"val needs one folder per class with images in it \(.*emu")
    Image.new("RGB", (9, 9)).save(tree / "val" / "emu" / "0.png")
    refused(r"train and val have different classes \(emu in one only\)")
    shutil.rmtree(tree / "val")
    refused("has neither a folder val nor test")
    (tree / "val").mkdir()
    refused("val needs one folder per class")
    shutil.rmtree(tree / "train")
    refused("has no folder train")


def test_unreadable_image_is_named(tree: Path) -> None:
    (tree / "val" / "cat" / "0.png").write_bytes(b"not an image")
    data = load_data(f"folder:{tree}").test(INPUT)
    with pytest.raises(DataError, match=r"cat.0\.png: cannot be read as an image"):
        data[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_fifo_among_the_images_is_not_waited_for(tree: Path) -> None:
    os.mkfifo(tree / "val" / "cat" / "9.png")
    images = load_data(f"folder:{tree}").test(INPUT)
    with pytest.raises(DataError, match=r"9\.png: is not a regular file; give the path of an image"):
        images[2]


def test_two_channels_are_refused(tree: Path) -> None:
    with pytest.raises(DataError, match=r"have 1 or 3 channels, the model's input has 2; pass --input"):
        load_data(f"folder:{tree}").test(Preprocess((2, 9, 9), (0.0, 0.0), (1.0, 1.0)))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_images_of_more_than_8_bits_are_refused_and_not_cut_off(tree: Path, dtype: type) -> None:
    name = "deep.png" if dtype is np.uint16 else "deep.tiff"
    Image.fromarray(np.full((20, 20), 40_000, dtype=dtype)).save(tree / "val" / "cat" / name)
    with pytest.raises(DataError, match=rf"{name}: has pixels of mode [IF].*, which would be cut off at 255"):
        list(loader(load_data(f"folder:{tree}").test(INPUT), 8))


def test_an_image_that_unpacks_to_gigabytes_is_refused(tree: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tree / "val" / "cat" / "bomb.png")
    with pytest.raises(DataError, match=r"bomb\.png: unpacks to more pixels than any photograph has"):
        list(loader(load_data(f"folder:{tree}").test(INPUT), 8))
