"""Fuse: low-rank layers become plain layers, and BatchNorm folds into what stands before it."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.overrides import TorchFunctionMode

from .convert import low_rank_layers, plan_of
from .errors import ModelError
from .evaluate import device_of
from .probe import evaluating

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


def fuse(model: nn.Module, example: Tensor | None = None) -> nn.Module:
    """A copy made of plain layers only, in eval mode, with the same outputs.

    Args:
        model: a converted network.
        example: (N, ...) an input to find out with which BatchNorm follows which layer; by default zeros of the
            shape that the plan was made for.

    Returns:
        The network as nn.Conv2d and nn.Linear: two in a row for each low-rank layer, or one where that is cheaper.

    Raises:
        PlanError: the model was never converted, and no example is given.
    """
    if example is None:
        first = next(model.parameters(), torch.zeros(()))
        example = torch.zeros(1, *plan_of(model).input_shape, device=device_of(model), dtype=first.dtype)
    fused = copy.deepcopy(model).eval()
    vars(fused).pop("_dprp_plan", None)
    by_name = dict(fused.named_modules(remove_duplicate=False))
    plain = {layer: layer.fuse().eval() for layer in low_rank_layers(fused).values()}
    for name, module in by_name.items():
        if module in plain:
            parent, _, child = name.rpartition(".")
            setattr(by_name[parent], child, plain[module])
    fold_batch_norms(fused, example)
    return fused


def fold_batch_norms(model: nn.Module, example: Tensor) -> nn.Module:
    """Folds each BatchNorm into the convolution or dense layer whose output only it reads. In place, eval mode.

    One forward pass watches who reads what, so no tracing of the model is needed.

    Args:
        model: in eval mode.
        example: an input it takes.

    Raises:
        ModelError: the model is in training mode, where a BatchNorm cannot be folded.
    """
    if model.training:
        raise ModelError("the model is in training mode; call model.eval() before folding BatchNorm")
    for layer, norm in _pairs(model, example):
        folded = fuse_conv_bn_eval(layer, norm) if isinstance(layer, nn.Conv2d) else fuse_linear_bn_eval(layer, norm)
        _swap(model, layer, folded)
        _swap(model, norm, nn.Identity())
    return model


class _Readers(TorchFunctionMode):
    """Notes which watched tensors any operation outside of a BatchNorm reads."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, Tensor] = {}  # holds the tensors, so that their ids stay theirs
        self.read: set[int] = set()
        self.norm: nn.Module | None = None  # the BatchNorm that is running: what it reads does not count

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.norm is None:
            self.read.update(id(value) for value in _tensors((*args, *(kwargs or {}).values())))
        return func(*args, **(kwargs or {}))


def _pairs(model: nn.Module, example: Tensor) -> list[tuple[nn.Conv2d | nn.Linear, BatchNorm]]:
    readers = _Readers()
    made_by: dict[int, nn.Conv2d | nn.Linear] = {}
    runs: defaultdict[nn.Module, int] = defaultdict(int)
    found: list[tuple[nn.Conv2d | nn.Linear, BatchNorm, int]] = []

    def after_layer(module: nn.Module, _inputs: Any, output: Any) -> None:
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        runs[module] += 1
        readers.watched[id(output)] = output
        made_by[id(output)] = module

    def before_norm(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(module, BatchNorm)
        runs[module] += 1
        readers.norm = module
        layer = made_by.get(id(inputs[0])) if inputs else None
        if layer is not None:
            found.append((layer, module, id(inputs[0])))

    def after_norm(*_: Any) -> None:
        readers.norm = None

    handles = []
    for module in model.modules():
        if type(module) in (nn.Conv2d, nn.Linear):
            handles.append(module.register_forward_hook(after_layer))
        elif isinstance(module, BatchNorm) and module.track_running_stats:
            handles.append(module.register_forward_pre_hook(before_norm))
            handles.append(module.register_forward_hook(after_norm))
    try:
        with evaluating(model), torch.no_grad(), readers:
            outputs = model(example)
    finally:
        for handle in handles:
            handle.remove()
    read = readers.read | {id(tensor) for tensor in _tensors([outputs])}
    tied = _tied(model)
    return [
        (layer, norm)
        for layer, norm, output in found
        if output not in read
        and runs[layer] == runs[norm] == 1
        and layer not in tied
        and norm.num_features == (layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features)
    ]


def _tied(model: nn.Module) -> set[nn.Module]:
    owners: defaultdict[int, set[nn.Module]] = defaultdict(set)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)].add(module)
    return {module for group in owners.values() if len(group) > 1 for module in group}


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(_tensors(value))
        elif isinstance(value, dict):
            found.extend(_tensors(value.values()))
    return found


def _swap(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    by_name = dict(model.named_modules(remove_duplicate=False))
    for name, module in by_name.items():
        if module is old:
            parent, _, child = name.rpartition(".")
            setattr(by_name[parent], child, new)
