"""What processes that train one network do in step.

The network is never wrapped: its parameters change shape at a cut. Gradients are averaged in one flat buffer a step,
and what one process decides or decomposes goes to the others, as decompositions on several GPUs may differ in the
last bits. All of it does nothing where there is one process.
"""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.data import DataLoader

from ..errors import TrainingError
from .metric import Metric


class Together:
    """This process among those that train one network.

    Args:
        accelerator: of the run.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.number: int = accelerator.process_index
        self.count: int = accelerator.num_processes
        self.first: bool = accelerator.is_main_process

    def every(self, *flags: bool) -> list[bool]:
        """Each flag: whether it holds in every process."""
        if self.count == 1:
            return list(flags)
        held = torch.tensor([float(flag) for flag in flags], device=self._accelerator.device)
        dist.all_reduce(held, dist.ReduceOp.MIN)
        return [bool(flag) for flag in held.tolist()]

    def sent(self, what: Any) -> Any:
        """The first process's, made of tensors and plain values; on the CPU."""
        if self.count == 1:
            return what
        buffer = io.BytesIO()
        if self.first:
            torch.save(what, buffer)
        box = [buffer.getvalue()]
        dist.broadcast_object_list(box)
        return what if self.first else torch.load(io.BytesIO(box[0]), map_location="cpu", weights_only=True)

    def gathered(self, what: Any) -> list[Any]:
        """Everybody's, by number."""
        if self.count == 1:
            return [what]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, what)
        return found

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Puts the mean over the processes in place of each gradient, with one message."""
        if self.count == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        parts = [torch.zeros_like(one) if one.grad is None else one.grad for one in trained]
        there = torch.tensor([float(one.grad is not None) for one in trained], device=self._accelerator.device)
        flat = torch.cat([there, *(part.reshape(-1).float() for part in parts)])
        dist.all_reduce(flat)
        flat /= self.count
        used, *means = torch.split(flat, [len(trained), *(part.numel() for part in parts)])
        for parameter, mean, any_there in zip(trained, means, used.tolist(), strict=True):
            if any_there > 0:
                parameter.grad = mean.view(parameter.shape).to(parameter.dtype)

    def mean(self, values: Tensor) -> Tensor:
        """Over the processes."""
        total = values.clone()
        if self.count > 1:
            dist.all_reduce(total)
        return total / self.count

    def same_buffers(self, model: nn.Module) -> None:
        """Statistics are those of the first process."""
        if self.count > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def check(self, ranks: Mapping[str, int]) -> None:
        """Compares ranks.

        Raises:
            TrainingError: they are not everybody's.
        """
        digests = self.gathered(hashlib.sha256(repr(sorted(ranks.items())).encode()).hexdigest())
        if len(set(digests)) > 1:
            raise TrainingError(
                f"the ranks differ between the processes ({', '.join(one[:8] for one in digests)}); give all of them "
                "the same network, settings and data"
            )

    def share(self, batches: Any, *, even: bool) -> Any:
        """This process's part of a data set.

        Args:
            batches: a DataLoader, of which each process gets every so-manieth batch; or batches.
            even: for training: as many for everybody, of one size; else each sample once.
        """
        if self.count == 1:
            return batches
        if isinstance(batches, DataLoader):
            return prepare_data_loader(
                batches,
                num_processes=self.count,
                process_index=self.number,
                rng_types=[],
                even_batches=even,
            )
        return _EveryNth(batches, self.number, self.count)

    def score(self, model: nn.Module, batches: Any, metric: Metric) -> float:
        """Of a network that is the same everywhere."""
        if self.count == 1 or not metric.adds_up:
            return metric.score(model, batches)
        counted = _Counted(self.share(batches, even=False))
        value = metric.score(model, counted) * counted.images if counted.any() else 0.0
        sums = torch.tensor([value, float(counted.images)], dtype=torch.float64)
        sums = sums.float() if self._accelerator.device.type == "mps" else sums
        sums = sums.to(self._accelerator.device)
        dist.all_reduce(sums)
        total, images = sums.tolist()
        return total / images if images else metric.score(model, batches)


class _EveryNth:
    """Every n-th batch of what is no DataLoader."""

    def __init__(self, batches: Sequence[Any], first: int, step: int) -> None:
        self._batches = batches
        self._first = first
        self._step = step

    def __len__(self) -> int:
        return max(1, len(self._batches) // self._step)

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self._batches), self._first, None, self._step)


class _Counted:
    """Counts the images of batches that pass."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = iter(batches)
        self._ahead: list[Any] = []
        self.images = 0

    def any(self) -> bool:
        """Whether there is a batch."""
        self._ahead = list(itertools.islice(self._batches, 1))
        return bool(self._ahead)

    def __iter__(self) -> Iterator[Any]:
        for batch in itertools.chain(self._ahead, self._batches):
            self.images += len(batch[1])
            yield batch
