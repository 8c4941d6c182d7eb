"""What a model takes and gives, as tensors with names: all that an ONNX file knows."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy.typing as npt
import torch
from torch import Tensor, nn

from .errors import ExportError, first_line


@runtime_checkable
class Call(Protocol):
    """Arguments by position and by name."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


Inputs: TypeAlias = Tensor | tuple[Any, ...] | list[Tensor] | Mapping[str, Any] | Call
"""One tensor, a tuple of positional arguments, a list of images, a dictionary of named arguments, or all of it."""


class Flat:
    """A model's `forward` as a function of tensors in a row, which gives tensors in a row.

    Args:
        model: in evaluation mode, on the CPU.
        example: what it takes. Whatever in it is no tensor, the model is given every time.

    Attributes:
        tensors: those of the example.
        input_names: of these: the names of arguments, or "input" for a single one by position.
        lists: whether the example has lists, of one tensor an image each.
        images: how many there are.

    Raises:
        ExportError: the example holds no tensor.
    """

    def __init__(self, model: nn.Module, example: Inputs) -> None:
        self._model = model
        self._forward = model.forward
        self._args, self._kwargs = _arguments(example)
        found = _of_call(self._args, self._kwargs)
        self.tensors = tuple(tensor.detach().cpu() for tensor in found.values())
        self.input_names = list(found)
        if not found:
            raise ExportError("example: not a tensor or a tuple of tensors. Give one batch as the model takes it.")
        self.lists = any(True for _ in _lists((self._args, self._kwargs)))
        self.images = images_in(example)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._answer(tensors).values())

    def batch(self, tensors: tuple[Tensor, ...]) -> Inputs:
        """The example with other tensors."""
        rest = iter(tensors)
        args = _filled(self._args, rest)
        return _Arguments(args, _filled(self._kwargs, rest))

    def of_images(self, images: int) -> Flat:
        """The same call on so many images, those of the example again and again.

        Raises:
            ExportError: less than one, or a list of another length.
        """
        if images < 1:
            raise ExportError(
                f"batch: {images} is not at least 1. Give how many images a run takes, or None for any."
            )
        if self.lists and images != self.images:
            raise ExportError(
                f"batch: {images} is impossible for a list of {self.images} images. Give a list of {images} instead."
            )
        if self.lists:
            return self
        tensors = tuple(tensor[torch.arange(images) % len(tensor)] for tensor in self.tensors)
        return Flat(self._model, self.batch(tensors))

    def run(self, tensors: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """What the model gives, without gradients: "output", or by key or field of what holds several tensors.

        Raises:
            ExportError: forward fails, or gives no tensor.
        """
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        try:
            with torch.no_grad():
                answer = self._answer(tensors)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ExportError(
                f"{type(self._model).__name__}: forward fails on inputs of shape {shapes} ({first_line(error)}). "
                f"Give an example that the model accepts, and let forward work at any batch size."
            ) from error
        if not answer:
            raise ExportError(
                f"{type(self._model).__name__}: forward gives no tensor. Wrap the model in a module that returns one."
            )
        # A name stands for one thing in a graph.
        return {f"{name}_out" if name in self.input_names else name: tensor for name, tensor in answer.items()}

    def _answer(self, tensors: tuple[Tensor, ...]) -> dict[str, Tensor]:
        rest = iter(tensors)
        args = _filled(self._args, rest)
        answer = self._forward(*args, **_filled(self._kwargs, rest))
        return {"output": answer} if isinstance(answer, Tensor) else _named(answer, "output")


@dataclasses.dataclass
class _Arguments:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@contextlib.contextmanager
def flattened(model: nn.Module, flat: Flat) -> Iterator[None]:
    """The model takes and gives tensors in a row inside."""
    model.forward = flat.__call__
    try:
        yield
    finally:
        del model.forward


def _arguments(example: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, tuple):
        return example, {}
    if isinstance(example, list):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, Call):
        return example.args, example.kwargs
    raise ExportError(
        f"example: not a tensor or a tuple of tensors, but a {type(example).__name__}. Give one batch as the model "
        "takes it, or a dictionary of named arguments."
    )


def images_in(inputs: Inputs) -> int:
    """How many images a call is for."""
    args, kwargs = _arguments(inputs)
    listed = next(_lists((args, kwargs)), None)
    if listed is not None:
        return len(listed)
    first = next(iter(_of_call(args, kwargs).values()), None)
    return len(first) if first is not None and first.dim() else 0


def arrays_in(inputs: Inputs) -> list[npt.NDArray[Any]]:
    """The tensors of a call, in the order in which a file takes them."""
    return [tensor.detach().cpu().numpy() for tensor in _of_call(*_arguments(inputs)).values()]


def _of_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors by the names that they have as inputs of a file."""
    named = _named(kwargs, "")
    return {**_named(args if named or len(args) != 1 else args[0], "input"), **named}


def _lists(value: Any) -> Iterator[list[Any]]:
    """Lists of tensors."""
    if isinstance(value, list):
        if _named(value, ""):
            yield value
        return
    for part in value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple) else ():
        yield from _lists(part)


def _named(value: Any, name: str) -> dict[str, Tensor]:
    """Tensors by where they are: keys, fields, or places after the name of what holds them."""
    if isinstance(value, Tensor):
        return {name: value}
    parts: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        parts = [(str(key), part) for key, part in value.items()]
    elif hasattr(value, "_fields"):
        parts = [(field, getattr(value, field)) for field in value._fields]
    elif isinstance(value, (tuple, list)):
        parts = [(f"{name}_{place}", part) for place, part in enumerate(value)]
    elif dataclasses.is_dataclass(value):
        parts = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    found: dict[str, Tensor] = {}
    for inner, part in parts:
        for key, tensor in _named(part, inner).items():
            found[key if key not in found else f"{key}_{len(found)}"] = tensor
    return found


def _filled(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The same with other tensors, in the order of `_named`."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, Mapping):
        return {key: _filled(part, tensors) for key, part in value.items()}
    if isinstance(value, list):
        return [_filled(part, tensors) for part in value]
    if isinstance(value, tuple):
        parts = [_filled(part, tensors) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value
