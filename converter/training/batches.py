"""What a run draws from its data: the same batches whatever else the run does, from any place in them.

Each draw has random numbers of its own, from the seed and its place: a run that goes on from the middle of an epoch
draws what it would have drawn, and augmentation does not depend on how much randomness the network uses.
"""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from ..analysis.running import finite, tensors_in
from ..errors import ConverterWarning
from .random_numbers import random_numbers
from .together import Together

Batch = tuple[Any, Any]


class Draws:
    """Draws batches of inputs and targets, epoch by epoch.

    A single image that is left over after larger batches is dropped where there are BatchNorms, as it has no
    variance.
    Inputs that are not finite are dropped with a word: they would spoil the statistics of BatchNorms.

    Args:
        loader: gives pairs, and can be gone through anew.
        device: where they go.
        seed: of their randomness.
        layout: of images in memory.
        normalised: whether the network has BatchNorms.
        together: the other processes: each augments in its own way, and what one cannot use, nobody uses.
    """

    def __init__(
        self,
        loader: Iterable[Batch],
        device: torch.device,
        *,
        seed: int,
        layout: torch.memory_format,
        normalised: bool,
        together: Together,
    ) -> None:
        self._loader = loader
        self._device = device
        self._seed = seed
        self._layout = layout
        self._normalised = normalised
        self._together = together
        self._generators = _generators(loader)
        self._starts = [generator.get_state() for generator in self._generators]

    def groups(self, epoch: int, size: int, skip: int = 0) -> Iterator[tuple[list[Batch], bool]]:
        """So many batches at a time, and whether they are the last of the epoch.

        Args:
            epoch: from 1.
            size: batches in a group, >= 1.
            skip: groups at the start that are drawn, and left out.
        """
        self._starts = [generator.get_state() for generator in self._generators]
        waiting: list[Batch] = []
        made = 0
        for batch in self._usable(epoch):
            if len(waiting) == size:
                made += 1
                if made > skip:
                    yield waiting, False
                waiting = []
            waiting.append(batch)
        if waiting and made >= skip:
            yield waiting, True

    def state(self, *, over: bool) -> list[Tensor]:
        """Where the loader's own generators stood at the start of this epoch; of the next one where this is over."""
        return [generator.get_state() for generator in self._generators] if over else self._starts

    def restore(self, state: list[Tensor]) -> None:
        """Before `groups` of the same epoch."""
        for generator, start in zip(self._generators, state, strict=True):
            generator.set_state(start)

    def _usable(self, epoch: int) -> Iterator[Batch]:
        largest = 0
        for batch in self._drawn(epoch):
            sound = True
            if batch is not None:
                inputs, targets = (send_to_device(part, self._device) for part in batch)
                images = len(inputs) if isinstance(inputs, (Tensor, list, tuple)) else 0
                alone = self._normalised and isinstance(inputs, Tensor) and images == 1 and largest > 1
                sound = not alone and self._finite(inputs)
            there, sound = self._together.every(batch is not None, sound)
            if not there:
                return
            if sound:
                if isinstance(inputs, Tensor) and inputs.dim() == 4:
                    inputs = inputs.contiguous(memory_format=self._layout)
                largest = max(largest, images)
                yield inputs, targets

    @staticmethod
    def _finite(inputs: Any) -> bool:
        found = all(finite(tensor) for tensor in tensors_in(inputs) if tensor.is_floating_point())
        if not found:
            warnings.warn(
                "a batch with values that are not finite was left out; check the data", ConverterWarning, stacklevel=2
            )
        return found

    def _drawn(self, epoch: int) -> Iterator[Batch | None]:
        """Batches, and None when there are no more."""
        batches: Iterator[Batch] | None = None
        for drawn in itertools.count():
            # The first draw may also shuffle, which all processes do alike.
            with random_numbers(self._seed, epoch, drawn, self._together.number if drawn else 0):
                batches = iter(self._loader) if batches is None else batches
                batch = next(batches, None)
            yield batch


def _generators(loader: Any) -> list[torch.Generator]:
    """Those that a DataLoader brings, each once."""
    batched = getattr(loader, "batch_sampler", None)
    inner = getattr(batched, "batch_sampler", batched)  # of one process among several
    owners = (loader, getattr(loader, "sampler", None), batched, inner, getattr(inner, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())


def fingerprint(loader: Any) -> str:
    """What tells one data set from another, cheaply: how many batches and samples, and the first of these."""
    source = getattr(loader, "dataset", loader)
    digest = hashlib.sha256(repr([_length(loader), _length(source), getattr(loader, "batch_size", None)]).encode())
    with random_numbers(0):
        try:
            first = source[0]
        except Exception:  # a data set of the user's, which may only stream
            first = None
    for tensor in tensors_in(first):
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _length(of: Any) -> int | None:
    return len(of) if isinstance(of, Sized) else None
