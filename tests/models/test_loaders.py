from collections.abc import Iterator

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.utils.data import DataLoader, RandomSampler

from dprp.models import Augment, DataError, Mix, Preprocess, loader
from dprp.models.arrays import ArrayData, ArrayDataset, Arrays

GRAY = Preprocess((1, 8, 8), (0.0,), (1.0,))


@pytest.fixture
def dataset() -> ArrayDataset:
    """Image number i is all i, and has the label i."""
    labels = torch.arange(100)
    images = labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    data = ArrayData("numbers", Arrays(images, labels), Arrays(images, labels), Augment.CROP)
    return data.test(GRAY)


def labels_of(batches: DataLoader) -> list[int]:
    return torch.cat([labels for _, labels in batches]).tolist()


def test_batches_in_order_with_a_smaller_last(dataset: ArrayDataset) -> None:
    sizes = []
    for images, labels in loader(dataset, 32):
        assert images.shape == (len(labels), 1, 8, 8)
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        np.testing.assert_array_equal((images[:, 0, 0, 0] * 255).round(), labels)
        sizes.append(len(labels))
    assert sizes == [32, 32, 32, 4]


def test_shuffle_is_seeded_and_new_each_time_round(dataset: ArrayDataset) -> None:
    batches = loader(dataset, 32, shuffle=True, seed=5)
    first, second = labels_of(batches), labels_of(batches)
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second
    assert labels_of(loader(dataset, 32, shuffle=True, seed=5)) == first
    assert labels_of(loader(dataset, 32, shuffle=True, seed=6)) != first


def test_limit_is_a_seeded_random_choice_that_does_not_move(dataset: ArrayDataset) -> None:
    chosen = labels_of(loader(dataset, 4, limit=10))
    assert len(set(chosen)) == 10
    assert chosen != list(range(10))
    assert labels_of(loader(dataset, 3, limit=10)) == chosen
    assert labels_of(loader(dataset, 3, limit=20))[:10] == chosen
    assert labels_of(loader(dataset, 3, limit=10, seed=1)) != chosen
    assert sorted(labels_of(loader(dataset, 3, limit=10, shuffle=True))) == sorted(chosen)
    assert len(labels_of(loader(dataset, 3, limit=1000))) == 100


def test_loading_leaves_the_global_generator_alone(dataset: ArrayDataset) -> None:
    state = torch.get_rng_state()
    labels_of(loader(dataset, 32, shuffle=True, limit=50))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_is_read_at_once(dataset: ArrayDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("one image at a time")

    monkeypatch.setattr(ArrayDataset, "__getitem__", refuse)
    assert len(labels_of(loader(dataset, 32))) == 100
    assert len(labels_of(loader(dataset, 32, limit=50, shuffle=True))) == 50


# From Python 3.12 on, fork warns in a process that has threads, and torch always has.
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_workers_give_the_same_images(dataset: ArrayDataset) -> None:
    assert labels_of(loader(dataset, 32, workers=1)) == list(range(100))


@pytest.mark.parametrize(
    ("batch_size", "limit", "workers", "message"),
    [
        (0, None, 0, "batch size 0 is not allowed; pass 1 or more"),
        (4, 0, 0, "limit 0 is not allowed; pass 1 or more"),
        (4, None, -1, "workers -1 is not allowed; pass 0 or more"),
    ],
)
def test_numbers_out_of_range(
    dataset: ArrayDataset, batch_size: int, limit: int | None, workers: int, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        loader(dataset, batch_size, limit=limit, workers=workers)


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("limit", [None, 50])
def test_accelerate_prepares_it(
    dataset: ArrayDataset, accelerator: Accelerator, shuffle: bool, limit: int | None
) -> None:
    plain = loader(dataset, 32, shuffle=shuffle, limit=limit)
    prepared = accelerator.prepare(loader(dataset, 32, shuffle=shuffle, limit=limit))
    assert isinstance(plain.sampler, RandomSampler) is shuffle
    for (images, labels), (images_too, labels_too) in zip(plain, prepared, strict=True):
        assert torch.equal(images, images_too)
        assert torch.equal(labels, labels_too)


@pytest.mark.parametrize("mix", [Mix.MIXUP, Mix.CUTMIX])
def test_mixed_images_have_mixed_labels(dataset: ArrayDataset, mix: Mix) -> None:
    """Image number i is all i: the mean of a mixed one is that of its labels."""
    torch.manual_seed(0)
    seen = 0
    for images, targets in loader(dataset, 33, mix=mix, classes=100):
        assert targets.shape == (len(images), 100)
        torch.testing.assert_close(targets.sum(1), torch.ones(len(images)))
        wanted = (targets * torch.arange(100.0)).sum(1)
        torch.testing.assert_close(255 * images.mean((1, 2, 3)), wanted, rtol=1e-4, atol=1e-3)
        seen += int((targets.count_nonzero(1) == 2).sum())
    assert seen > 50  # a single image that is left over has nothing to be mixed with


def test_mixed_batches_come_from_workers(dataset: ArrayDataset) -> None:
    batches = list(loader(dataset, 50, mix=Mix.CUTMIX, classes=100, workers=1))
    assert [targets.shape for _, targets in batches] == [(50, 100), (50, 100)]
