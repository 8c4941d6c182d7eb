"""What a network eats: a tensor of samples, or several things that belong together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..errors import ModelError


class Inputs:
    """The arguments of a network's `forward` for several samples: what a tensor (N, ...) is where it takes one.

        Inputs(first_frames, second_frames)
        Inputs(input_ids=tokens, attention_mask=mask)
        Inputs([image, larger_image])

    Tensors have samples first, and lists have an element for each, as torchvision's detectors take images; tuples
    and dictionaries may hold either. Whatever else there is, is the same for all samples.

    Raises:
        ModelError: no samples, or not the same number everywhere.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.kwargs = kwargs
        counts = {len(part) for part in _parts((args, kwargs))}
        if len(counts) != 1:
            found = f"{' and '.join(map(str, sorted(counts)))} samples" if counts else "no tensor"
            raise ModelError(f"the inputs hold {found}; give tensors (N, ...) or lists of N, with one N for all")
        (self._count,) = counts

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, which: slice | Tensor) -> Inputs:
        """Some of the samples, by a slice or by their places (n,)."""

        def some(part: Tensor | list[Any]) -> Any:
            if isinstance(part, Tensor):
                return part[which if isinstance(which, slice) else which.to(part.device)]
            return part[which] if isinstance(which, slice) else [part[place] for place in which.tolist()]

        return self._each(some)

    @property
    def shape(self) -> torch.Size:
        """Of the first tensor, with all samples."""
        first = self._tensors()[0]
        rest = first.shape if isinstance(_parts((self.args, self.kwargs))[0], list) else first.shape[1:]
        return torch.Size([len(self), *rest])

    @property
    def device(self) -> torch.device:
        return self._tensors()[0].device

    def is_floating_point(self) -> bool:
        """Whether any tensor is."""
        return any(tensor.is_floating_point() for tensor in self._tensors())

    def split(self, count: int) -> list[Inputs]:
        """So many samples at a time."""
        return [self[start : start + count] for start in range(0, len(self), count)]

    def to(self, like: Tensor | torch.device) -> Inputs:
        """To a device; or to the device of a tensor and, where they are of floating point, to its type."""
        device = like if isinstance(like, torch.device) else like.device

        def moved(tensor: Tensor) -> Tensor:
            typed = isinstance(like, Tensor) and tensor.is_floating_point()
            return tensor.to(like) if typed else tensor.to(device)

        return self._mapped(moved)

    def cpu(self) -> Inputs:
        return self.to(torch.device("cpu"))

    def double(self) -> Inputs:
        """What is of floating point in float64."""
        return self._mapped(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)

    def clone(self) -> Inputs:
        return self._mapped(Tensor.clone)

    def noise(self, generator: torch.Generator) -> Inputs:
        """Inputs alike, with noise in the place of what is of floating point."""
        return self._mapped(
            lambda tensor: (
                torch.randn(tensor.shape, generator=generator).to(tensor) if tensor.is_floating_point() else tensor
            )
        )

    @staticmethod
    def joined(several: Sequence[Inputs]) -> Inputs:
        """The samples of all, in one."""
        parts = [iter(_parts((inputs.args, inputs.kwargs))) for inputs in several]

        def one(_: Any) -> Any:
            found = [next(part) for part in parts]
            return [*itertools.chain(*found)] if isinstance(found[0], list) else torch.cat(found)

        return several[0]._each(one)

    def _each(self, change: Callable[[Any], Any]) -> Inputs:
        args, kwargs = _changed((self.args, self.kwargs), change)
        return Inputs(*args, **kwargs)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        def deep(value: Any) -> Any:
            if isinstance(value, list):
                return [deep(element) for element in value]
            return change(value) if isinstance(value, Tensor) else _changed(value, deep)

        return self._each(deep)

    def _tensors(self) -> list[Tensor]:
        found: list[Tensor] = []
        self._mapped(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
        if not found:
            raise ModelError("the inputs hold no tensor; give tensors (N, ...), or lists of N of them")
        return found


Samples: TypeAlias = Tensor | Inputs
"""Of one argument, or of several."""

Example: TypeAlias = Tensor | Inputs | tuple[Any, ...] | list[Any] | Mapping[str, Any]
"""The same, and what stands for `Inputs`: a tuple of arguments, a dictionary of named ones, a list of samples."""


def as_samples(example: Example) -> Samples:
    """Says what a tuple, a list or a dictionary is.

    Raises:
        ModelError: it holds no samples.
    """
    if isinstance(example, (Tensor, Inputs)):
        return example
    if isinstance(example, tuple):
        return Inputs(*example)
    if isinstance(example, Mapping):
        return Inputs(**example)
    if isinstance(example, list):
        return Inputs(example)
    raise ModelError(
        f"the inputs are of type {type(example).__name__}; give a tensor (N, ...), a tuple of them, a dictionary of "
        "named ones, or a list of samples"
    )


def joined(several: Sequence[Samples]) -> Any:
    """The samples of all, in one."""
    if isinstance(several[0], Tensor):
        return torch.cat(several)  # type: ignore[arg-type]
    return Inputs.joined(several)  # type: ignore[arg-type]


def _parts(value: Any) -> list[Any]:
    """Tensors and lists that hold the samples."""
    found: list[Any] = []
    _changed(value, lambda part: found.append(part))
    return found


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, list) or (isinstance(value, Tensor) and value.dim()):
        return change(value)
    if isinstance(value, tuple):
        changed = [_changed(part, change) for part in value]
        return type(value)(*changed) if hasattr(value, "_fields") else tuple(changed)
    if isinstance(value, dict):
        return {name: _changed(part, change) for name, part in value.items()}
    return value
