"""Which BatchNorm reads a layer's output, and nothing else does: found by watching the network run.

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

from ..lowrank.shapes import Plain, shape_of
from .inputs import Samples
from .probe import evaluating
from .running import run, same_noise, tensors_in

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d

_NORM_AFTER: dict[type, tuple[type, int]] = {
    nn.Linear: (nn.BatchNorm1d, 2),
    nn.Conv1d: (nn.BatchNorm1d, 3),
    nn.Conv2d: (nn.BatchNorm2d, 4),
    nn.Conv3d: (nn.BatchNorm3d, 5),
    nn.ConvTranspose1d: (nn.BatchNorm1d, 3),
    nn.ConvTranspose2d: (nn.BatchNorm2d, 4),
    nn.ConvTranspose3d: (nn.BatchNorm3d, 5),
}
"""The kind of norm that acts on a layer's output channels, and the axes of that output."""

_LOOKS = frozenset(
    (
        *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "layout", "requires_grad")),
        *(getattr(Tensor, name).__get__ for name in ("is_cuda", "is_sparse", "is_quantized", "is_nested")),
        *(getattr(Tensor, name) for name in ("size", "dim", "numel", "stride", "is_contiguous", "is_floating_point")),
    )
)
"""What may be asked of a tensor without reading its values."""


class Pair(NamedTuple):
    """Names of a layer and of the BatchNorm that follows it."""

    layer: str
    norm: str


def norm_pairs(model: nn.Module, inputs: Sequence[Samples]) -> list[Pair]:
    """Layers whose output a BatchNorm reads and nothing else, as one forward pass on each input shows it.

    Args:
        model: runs in eval mode; as it was afterwards.
        inputs: (N, ...) each; a pair is one that all of them agree on.

    Returns:
        In the order of the layers. Both of a pair are of torch's own kinds, run once, and have no hooks.
    """
    names = {module: name for name, module in model.named_modules()}
    with evaluating(model):
        plain = _plain_modules(model)
    passes = [_Watch(model, plain) for _ in inputs]
    found = [watch.pairs(example) for watch, example in zip(passes, inputs, strict=True)]
    every = {pair: None for pairs in found for pair in pairs.items()}
    # On an input where one of the two ran without the other, they are no pair.
    agreed = [
        (layer, norm)
        for layer, norm in every
        if all(
            pairs.get(layer) is norm or not {layer, norm} & watch.ran
            for watch, pairs in zip(passes, found, strict=True)
        )
    ]
    order = {name: place for place, name in enumerate(names.values())}
    return sorted((Pair(names[layer], names[norm]) for layer, norm in agreed), key=lambda pair: order[pair.layer])


def _plain_modules(model: nn.Module) -> set[nn.Module]:
    """Layers and norms of exactly torch's own kinds, without hooks, with weights of their own."""
    owners: defaultdict[int, set[nn.Module]] = defaultdict(set)
    for module in model.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            owners[id(tensor)].add(module)
    tied = {module for group in owners.values() if len(group) > 1 for module in group}
    norms = {norm for norm, _ in _NORM_AFTER.values()}
    return {
        module
        for module in model.modules()
        if (type(module) in _NORM_AFTER or (type(module) in norms and _has_statistics(module)))
        and module is not model
        and module not in tied
        and "forward" not in vars(module)
        and not any(hooks for name, hooks in vars(module).items() if name in _HOOKS)
    }


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _has_statistics(norm: nn.Module) -> bool:
    return isinstance(getattr(norm, "running_mean", None), Tensor) and not norm.training


class _Watch(TorchFunctionMode):
    """One forward pass, and who reads the outputs and the weights of layers in it.

    Args:
        model: in eval mode.
        plain: layers and norms that may be folded.
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
        self._norm_of: dict[int, nn.Module] = {}
        self._spoiled: set[nn.Module] = set()

    def pairs(self, example: Samples) -> dict[nn.Module, nn.Module]:
        """The norm that alone reads a layer's output, by layer."""
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
            key: (layer, self._norm_of[key])
            for key, (layer, output) in self._outputs.items()
            if key in self._norm_of and key not in self._read and _same_axis(layer, self._norm_of[key], output)
        }
        # Whoever else holds an output, an attribute or a closure, may still read it.
        alive = {key: weakref.ref(self._outputs[key][1]) for key in found}
        self._outputs.clear()
        if any(output() is not None for output in alive.values()):
            gc.collect()
        return {
            layer: norm
            for key, (layer, norm) in found.items()
            if alive[key]() is None
            and self._runs[layer] == self._runs[norm] == 1
            and not {layer, norm} & self._spoiled
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
                # What a norm that is running reads has been noted when it began.
                if key in self._outputs and not (self._running and self._norm_of.get(key) is self._running[-1]):
                    self._read.add(key)
        return func(*args, **(kwargs or {}))

    def _before(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.ran.add(module)
        self._runs[module] += 1
        self._running.append(module)
        if type(module) not in _NORM_AFTER and inputs:
            key = id(inputs[0])
            if key in self._outputs:
                if key in self._norm_of:
                    self._read.add(key)  # by a second norm
                self._norm_of[key] = module

    def _after(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        self._running.pop()
        if type(module) in _NORM_AFTER and isinstance(output, Tensor):
            self._outputs[id(output)] = (module, output)


def _same_axis(layer: nn.Module, norm: nn.Module, output: Tensor) -> bool:
    kind, axes = _NORM_AFTER[type(layer)]
    assert isinstance(layer, Plain)
    return type(norm) is kind and output.dim() == axes and shape_of(layer).outputs == norm.num_features
