"""Networks without weights: to be compared with a file before any memory is taken, and filled from it after."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..analysis.running import tensors_in


class _EmptyOnMeta(TorchFunctionMode):
    """`torch.empty`, from which layers make their weights, gives tensors on the meta device: shapes without data.

    Whatever is computed while a network is built (tables of indices, schedules of depths) is real all the same.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch.empty and given.get("device") is None:
            given["device"] = "meta"
        return func(*args, **given)


@contextmanager
def without_memory() -> Iterator[None]:
    """Networks built in the block have weights without data, which cost neither memory nor time."""
    with _EmptyOnMeta():
        yield


def can_be_filled(network: nn.Module) -> bool:
    """Whether all that a network built `without_memory` lacks is in its state dict.

    A tensor on the meta device that a module keeps for itself, or in a buffer that is not saved, would stay empty.
    """
    saved = {id(tensor) for tensor in network.state_dict(keep_vars=True).values() if isinstance(tensor, Tensor)}
    kept = [tensor for module in network.modules() for tensor in tensors_in(list(vars(module).values()))]
    return all(id(tensor) in saved for tensor in (*kept, *network.parameters(), *network.buffers()) if tensor.is_meta)


def fill(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Gives a network built `without_memory` its tensors, in the types that it was built with.

    Args:
        network: for which `can_be_filled` is true.
        tensors: all of its state dict; they are copied, for a file's may be pages of that file.
    """
    types = {name: tensor.dtype for name, tensor in network.state_dict().items()}
    whole = {name: torch.empty(tensor.shape, dtype=types[name]).copy_(tensor) for name, tensor in tensors.items()}
    network.load_state_dict(whole, assign=True)
