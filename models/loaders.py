"""DataLoaders that take whole batches at once."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from .errors import DataError
from .mixing import Mix, MixedBatches


def loader(
    dataset: Dataset[tuple[Tensor, int]],
    batch_size: int,
    *,
    shuffle: bool = False,
    limit: int | None = None,
    seed: int = 0,
    workers: int = 0,
    mix: Mix = Mix.NONE,
    classes: int = 0,
) -> DataLoader[tuple[Tensor, int]]:
    """Batches of (float32 images (n, channels, height, width), int64 labels (n,)).

    Args:
        dataset: from `ImageData.train` or `ImageData.test`.
        batch_size: images in a batch, >= 1; the last batch may be smaller.
        shuffle: a new order each time round, the same sequence of orders for the same seed.
        limit: use only so many images, >= 1, a random choice that depends on the seed alone; None uses all.
        seed: for `shuffle` and `limit`; augmentation follows torch's global generator.
        workers: processes that read ahead; 0 is fastest for data held in memory.
        mix: mix images in pairs; labels are then probabilities (n, classes).
        classes: of the labels, where these are mixed.

    Returns:
        The loader; it can go through `accelerate.Accelerator.prepare`.

    Raises:
        DataError: batch_size or limit below 1, or workers below 0.
    """
    for name, value, least in (("batch size", batch_size, 1), ("limit", limit, 1), ("workers", workers, 0)):
        if value is not None and value < least:
            raise DataError(f"{name} {value} is not allowed; pass {least} or more.")
    if limit is not None:
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
        dataset = Subset(dataset, order[:limit].tolist())
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=workers,
        collate_fn=collate if mix is Mix.NONE else MixedBatches(mix, classes, collate),
        # Its own generator even without shuffling: otherwise each pass would draw from the global one.
        generator=torch.Generator().manual_seed(seed),
    )


def collate(batch: Any) -> Any:
    """Pass a whole batch (images, labels) through; stack a list of single samples.

    Args:
        batch: a tuple of tensors, or a list of (image, label).

    Returns:
        Images (n, channels, height, width) and labels (n,).
    """
    return batch if isinstance(batch, tuple) else default_collate(batch)
