"""Running a user's network: one sentence when it fails, and the tensors in whatever it answers."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConverterError, ModelError
from .inputs import Inputs, Samples


def run(model: nn.Module, samples: Samples) -> Any:
    """What a network answers.

    Raises:
        ModelError: it cannot take the inputs; names the innermost of its modules that failed.
    """
    try:
        with as_written(model):
            return model(*samples.args, **samples.kwargs) if isinstance(samples, Inputs) else model(samples)
    except ConverterError:
        raise
    except Exception as error:  # a user's forward may raise anything
        given = [*samples.args, *samples.kwargs.values()] if isinstance(samples, Inputs) else [samples]
        shapes = ", ".join(_described(value) for value in given)
        raise ModelError(
            f"the model cannot take an input of {shapes} ({failed_in(model, error)}{first_line(error)}); give the "
            "shape and type it was made for (--input CxHxW)"
        ) from error


@contextmanager
def as_written(model: nn.Module) -> Iterator[None]:
    """Every module of a network runs as its forward says: none is passed over, and none compiled."""
    with _every_module(), _uncompiled(model):
        yield


@contextmanager
def _every_module() -> Iterator[None]:
    """Transformer layers call their children inside, instead of handing their weights to one fused operation."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _uncompiled(model: nn.Module) -> Iterator[None]:
    """Parts that torch.compile made run as they were written: hooks would make it compile them again and again."""
    compiled = (hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) for part in model.modules())
    if any(compiled):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


def copied(model: nn.Module, *, share: bool = False) -> nn.Module:
    """A copy of a network.

    Args:
        model: untouched.
        share: the copy's tensors are the network's own.

    Raises:
        ModelError: it cannot be copied, for instance because it holds tensors that are part of a graph.
    """
    try:
        tensors = itertools.chain(model.parameters(), model.buffers()) if share else ()
        return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    except Exception as error:  # a user's __deepcopy__ may raise anything
        raise ModelError(
            f"the model cannot be copied ({first_line(error)}); make copy.deepcopy(model) work: keep no file, lock, "
            "generator or tensor with a gradient on it"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its kind where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def failed_in(model: nn.Module, error: BaseException) -> str:
    """ "name: " of the innermost module of a model that an error went through, or nothing."""
    names = {id(module): name for name, module in model.named_modules() if name}
    found = ""
    for frame in _frames(error.__traceback__):
        found = names.get(id(frame.get("self")), found)
    return f"{found}: " if found else ""


@contextmanager
def named(layer: str, doing: str) -> Iterator[None]:
    """Turns what goes wrong inside, a decomposition that does not converge for instance, into one sentence.

    Args:
        layer: name of the layer that is worked on.
        doing: what is done with it, as in "fitting it".

    Raises:
        ModelError: names the layer.
    """
    try:
        yield
    except ConverterError as error:
        if layer in str(error):
            raise
        raise type(error)(f"{layer}: {error}") from error
    except (RuntimeError, ValueError) as error:  # torch.linalg.LinAlgError is a RuntimeError
        raise ModelError(
            f"{layer}: {doing} failed ({first_line(error)}); check its weight and its inputs for values that are "
            "huge or not finite, or keep it dense"
        ) from error


def finite(tensor: Tensor) -> bool:
    """Whether no value is infinite or not a number."""
    # A sum is many times faster, and finite only where all values are; but huge ones may add up to more than fits.
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in what a network takes or gives: in tuples, dictionaries, dataclasses, attributes of objects."""
    return list(_walk(value, set()))


def scores_in(output: Any) -> Tensor:
    """The answer that a network is judged by: of several outputs, the first of floating point.

    Raises:
        ModelError: there is none.
    """
    for tensor in tensors_in(output):
        if tensor.is_floating_point() and tensor.dim() > 0:
            return tensor
    raise ModelError(
        f"the model gives {type(output).__name__} without a tensor of floating point; its outputs cannot be compared"
    )


def log_probabilities(output: Any) -> Tensor:
    """(..., classes) float32 of a network's answer."""
    scores = scores_in(output).float()
    return F.log_softmax(scores.movedim(class_axis(scores), -1), -1)


def class_axis(scores: Tensor) -> int:
    """Of (..., classes), or of a map (N, classes, H, W) or (N, classes, D, H, W), which has its classes in front."""
    return 1 if scores.dim() >= 4 else scores.dim() - 1


def _walk(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    if id(value) in seen or isinstance(value, (nn.Module, type, str, bytes)):
        return
    seen.add(id(value))
    parts: Iterable[Any] = ()
    if isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, (tuple, list, set, frozenset)):
        parts = value
    elif dataclasses.is_dataclass(value):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif hasattr(value, "__dict__"):
        parts = list(vars(value).values())
    for part in parts:
        yield from _walk(part, seen)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"shape {tuple(value.shape)}, {str(value.dtype).removeprefix('torch.')}"
    return f"type {type(value).__name__}"


def _frames(trace: TracebackType | None) -> Iterator[dict[str, Any]]:
    while trace is not None:
        yield trace.tb_frame.f_locals
        trace = trace.tb_next


@contextmanager
def same_noise() -> Iterator[None]:
    """The same random numbers each time inside; the generator as it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
