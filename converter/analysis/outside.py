"""What happens outside of layers: attention's products, and weights that are used without calling their layer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.hooks import RemovableHandle

from .running import tensors_in


class OutsideCounter:
    """Counts while a network runs, except inside of some modules.

    Attributes:
        macs: so far.
        read: the `id` of each tensor that was given to an operation.
    """

    def __init__(self) -> None:
        self.macs = 0
        self.read: set[int] = set()
        self._inside = 0

    def leave_out(self, module: nn.Module) -> list[RemovableHandle]:
        """Does not count what a module computes."""

        def enter(*_: Any) -> None:
            self._inside += 1

        def leave(*_: Any) -> None:
            self._inside -= 1

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts in the block; fused attention falls into its products there."""
        with _Watch(self), sdpa_kernel(SDPBackend.MATH):
            yield

    def see(self, operation: Any, given: Any, named: Any, made: Any) -> None:
        """Takes note of an operation."""
        if self._inside:
            return
        self.read.update(id(tensor) for tensor in tensors_in((given, named)))
        count = flop_registry.get(operation)
        if count is not None:
            with contextlib.suppress(Exception):  # torch's formulas are for plain tensors
                self.macs += int(count(*given, **named, out_val=made)) // 2


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    def __init__(self, counter: OutsideCounter) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self._counter = counter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self._counter.see(func._overloadpacket, args, kwargs or {}, made)
        return made
