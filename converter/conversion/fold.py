"""BatchNorm folded into the layer before it: found by watching the network run, then proved.

A fold is right when the norm reads the layer's output, nothing else does, and both act on the same axis. A forward
pass shows who reads what, so no tracing of the model is needed; but it cannot show what compiled code reads, or what
another branch would. So every fold is proved as well: the outputs stay those of the unfolded network, in float64
where the network allows, and a fold that changes them is undone.
"""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

from ..analysis.probe import evaluating
from ..analysis.running import copied, run, same_noise, tensors_in
from ..errors import ConverterWarning, ModelError
from .trial import Trial

_NORM_AFTER: dict[type, tuple[type, int]] = {nn.Conv2d: (nn.BatchNorm2d, 4), nn.Linear: (nn.BatchNorm1d, 2)}
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


def fold_batch_norms(model: nn.Module, example: Tensor) -> nn.Module:
    """Folds each BatchNorm into the convolution or dense layer whose output only it reads. In place, eval mode.

    Args:
        model: in eval mode.
        example: an input like those to come, which decides what is proved; noise of its shape is tried as well.

    Returns:
        The model, with nn.Identity in the place of each norm that was folded.

    Raises:
        ModelError: the model is in training mode, or cannot take the example.
    """
    if model.training:
        raise ModelError("the model is in training mode; call model.eval() before folding BatchNorm")
    fold_proved(model, with_noise(example))
    return model


def with_noise(example: Tensor) -> list[Tensor]:
    """An example and, where it holds numbers and not indices, noise of its shape: always the same."""
    if not example.is_floating_point():
        return [example]
    noise = torch.randn(example.shape, generator=torch.Generator().manual_seed(0))
    return [example, noise.to(example)]


def fold_proved(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Folds in place what can be folded without changing the outputs on these inputs."""
    pairs = _foldable(model, inputs)
    if pairs:
        fold(model, _proved(model, pairs, inputs))


def fold(model: nn.Module, pairs: Sequence[Pair]) -> dict[str, nn.Module]:
    """Folds these pairs in place, unproved. Returns the modules that were replaced, by name."""
    before: dict[str, nn.Module] = {}
    for pair in pairs:
        layer, norm = model.get_submodule(pair.layer), model.get_submodule(pair.norm)
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        assert isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d))
        before |= {pair.layer: layer, pair.norm: norm}
        put(model, {pair.layer: _folded(layer, norm), pair.norm: nn.Identity()})
    return before


def put(model: nn.Module, modules: dict[str, nn.Module]) -> None:
    """Puts modules in the place of those of these names, wherever these stand."""
    old = {model.get_submodule(name): module for name, module in modules.items()}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in old:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, old[module])


def _folded(layer: nn.Conv2d | nn.Linear, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.Module:
    def exact(tensor: Tensor | None) -> Any:  # None where there is none, which the signature of torch's helper lacks
        return None if tensor is None else tensor.detach().double()

    weight, bias = fuse_conv_bn_weights(
        exact(layer.weight),
        exact(layer.bias),
        exact(norm.running_mean),
        exact(norm.running_var),
        norm.eps,
        exact(norm.weight),
        exact(norm.bias),
    )
    folded = copy.deepcopy(layer)
    wanted = layer.weight.requires_grad
    folded.weight = nn.Parameter(weight.detach().to(layer.weight), wanted)
    folded.bias = nn.Parameter(bias.detach().to(layer.weight), wanted)
    return folded


# Finding


def _foldable(model: nn.Module, inputs: Sequence[Tensor]) -> list[Pair]:
    """Pairs that every input agrees on, in the order of the layers."""
    names = {module: name for name, module in model.named_modules()}
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

    def pairs(self, example: Tensor) -> dict[nn.Module, nn.Module]:
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
    outputs = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
    return type(norm) is kind and output.dim() == axes and norm.num_features == outputs


# Proving


def _proved(model: nn.Module, pairs: list[Pair], inputs: Sequence[Tensor]) -> list[Pair]:
    """The pairs that can be folded without changing the outputs."""
    trial = Trial(model, inputs)
    twin = copied(trial.reference)
    if not trial.proves:
        warnings.warn(
            "the network's answer holds no tensor, so that no fold of a BatchNorm can be proved; all are left as "
            "they are",
            ConverterWarning,
            stacklevel=4,
        )
        return []

    def settle(some: list[Pair]) -> list[Pair]:
        if not some:
            return []
        replaced = fold(twin, some)
        wrong = trial.difference(twin)
        if wrong is None:
            return some
        put(twin, replaced)
        if len(some) > 1:
            half = len(some) // 2
            return settle(some[:half]) + settle(some[half:])
        warnings.warn(
            f"{some[0].norm}: not folded into {some[0].layer}, as {wrong}; it stays a BatchNorm",
            ConverterWarning,
            stacklevel=4,
        )
        return []

    return settle(pairs)
