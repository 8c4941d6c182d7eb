"""Which layer or norm alone reads what another one gives: found by watching the network run.

A forward pass shows who reads what, so no tracing of the model is needed; but it cannot show what compiled code
reads, or what another branch would.
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..lowrank.products import BatchNorm
from ..lowrank.shapes import KINDS
from .inputs import Samples
from .probe import evaluating
from .running import run, same_noise, tensors_in

_LAYERS = frozenset(KINDS.values())
_NORMS = frozenset(BatchNorm.__args__)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

_LOOKS = frozenset(
    (
        *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "layout", "requires_grad")),
        *(getattr(Tensor, name).__get__ for name in ("is_cuda", "is_sparse", "is_quantized", "is_nested")),
        *(getattr(Tensor, name) for name in ("size", "dim", "numel", "stride", "is_contiguous", "is_floating_point")),
    )
)
"""What may be asked of a tensor without reading its values."""


class Reader(NamedTuple):
    """The only one that reads what a layer or norm gives.

    Attributes:
        module: a layer or norm.
        axes: of what it reads.
    """

    module: nn.Module
    axes: int


def sole_readers(model: nn.Module, inputs: Sequence[Samples]) -> dict[nn.Module, Reader]:
    """By layer or norm, the layer or norm that alone reads its output, as one forward pass on each input shows it.

    Args:
        model: runs in eval mode; as it was afterwards.
        inputs: (N, ...) each; what is found is what all of them agree on.

    Returns:
        Both of a pair are of torch's own kinds, run once, and have no hooks.
    """
    with evaluating(model):
        plain = _plain_modules(model)
    passes = [_Watch(model, plain) for _ in inputs]
    found = [watch.readers(example) for watch, example in zip(passes, inputs, strict=True)]
    every = {(giver, reader): None for readers in found for giver, reader in readers.items()}
    # On an input where one of the two ran without the other, they are no pair.
    return {
        giver: reader
        for giver, reader in every
        if all(
            readers.get(giver) == reader or not {giver, reader.module} & watch.ran
            for watch, readers in zip(passes, found, strict=True)
        )
    }


def _plain_modules(model: nn.Module) -> set[nn.Module]:
    """Layers and norms of exactly torch's own kinds, without hooks, with weights of their own."""
    owners: defaultdict[int, set[nn.Module]] = defaultdict(set)
    for module in model.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            owners[id(tensor)].add(module)
    tied = {module for group in owners.values() if len(group) > 1 for module in group}
    return {
        module
        for module in model.modules()
        if (type(module) in _LAYERS or (type(module) in _NORMS and _has_statistics(module)))
        and module is not model
        and module not in tied
        and "forward" not in vars(module)
        and not any(hooks for name, hooks in vars(module).items() if name in _HOOKS)
    }


def _has_statistics(norm: nn.Module) -> bool:
    return isinstance(getattr(norm, "running_mean", None), Tensor) and not norm.training


class _Watch(TorchFunctionMode):
    """One forward pass, and who reads the outputs and the weights of layers and norms in it.

    Args:
        model: in eval mode.
        plain: layers and norms of interest.
    """

    def __init__(self, model: nn.Module, plain: set[nn.Module]) -> None:
        super().__init__()
        self.ran: set[nn.Module] = set()
        self._model = model
        self._plain = plain
        self._owner = {id(tensor): module for module in plain for tensor in (*module.parameters(), *module.buffers())}
        self._running: list[nn.Module] = []
        self._runs: Counter[nn.Module] = Counter()
        # Held, so that no other tensor can take its id while the pass goes on.
        self._outputs: dict[int, tuple[nn.Module, Tensor]] = {}
        self._read: set[int] = set()
        self._reader: dict[int, nn.Module] = {}
        self._spoiled: set[nn.Module] = set()

    def readers(self, example: Samples) -> dict[nn.Module, Reader]:
        """Who alone reads an output, by the module that gave it."""
        handles = []
        for module in self._plain:
            handles.append(module.register_forward_pre_hook(self._before))
            handles.append(module.register_forward_hook(self._after))
        try:
            with evaluating(self._model), torch.no_grad(), same_noise(), self:
                answer = run(self._model, example)
        finally:
            for handle in handles:
                handle.remove()
        self._read |= {id(tensor) for tensor in tensors_in(answer)}
        found = {
            key: (giver, Reader(self._reader[key], output.dim()))
            for key, (giver, output) in self._outputs.items()
            if key in self._reader and key not in self._read
        }
        # Whoever else holds an output, an attribute or a closure, may still read it.
        alive = {key: weakref.ref(self._outputs[key][1]) for key in found}
        self._outputs.clear()
        if any(output() is not None for output in alive.values()):
            gc.collect()
        return {
            giver: reader
            for key, (giver, reader) in found.items()
            if alive[key]() is None
            and self._runs[giver] == self._runs[reader.module] == 1
            and not {giver, reader.module} & self._spoiled
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in _LOOKS:
            for tensor in tensors_in((args, kwargs or {})):
                key = id(tensor)
                owner = self._owner.get(key)
                if owner is not None and owner not in self._running:
                    self._spoiled.add(owner)
                # What a reader that is running reads has been noted when it began.
                if key in self._outputs and not (self._running and self._reader.get(key) is self._running[-1]):
                    self._read.add(key)
        return func(*args, **(kwargs or {}))

    def _before(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.ran.add(module)
        self._runs[module] += 1
        self._running.append(module)
        if inputs:
            key = id(inputs[0])
            if key in self._outputs:
                if key in self._reader:
                    self._read.add(key)  # by a second one
                self._reader[key] = module

    def _after(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        self._running.pop()
        if isinstance(output, Tensor):
            self._outputs[id(output)] = (module, output)
