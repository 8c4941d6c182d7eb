"""Networks whose layers lie open: attention calls layers, where it read their weights before; pairs of layers with
nothing in between are one."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from ..lowrank.attention import OpenAttention, PackedAttention
from ..lowrank.window_attention import OpenWindowAttention
from .inputs import Samples
from .probe import evaluating
from .products import Products, join_in_place
from .running import copied, run, same_noise

_MULTI_HEAD = ("torch.nn.modules.activation", "MultiheadAttention")
_SWIN = "torchvision.models.swin_transformer"

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")

# By module and name: torchvision's are not imported for networks of other kinds.
_KINDS: dict[tuple[str, str], dict[type[nn.Module], tuple[str, ...]]] = {
    _MULTI_HEAD: {PackedAttention: ("in_proj",), OpenAttention: _PROJECTIONS},
    (_SWIN, "ShiftedWindowAttention"): {OpenWindowAttention: ("qkv", "proj")},
    (_SWIN, "ShiftedWindowAttentionV2"): {OpenWindowAttention: ("qkv", "proj")},
}
"""What each may become, and the layers whose names ask for it."""


def opened(model: nn.Module, names: Iterable[str], products: Products = MappingProxyType({})) -> nn.Module:
    """A network with the same function, and the same weights in memory, in which attention's projections are layers.

    Args:
        model: untouched.
        names: of layers that are asked for, as `Survey` and `Plan` have them; attention none of whose new layers is
            among them stays closed. `layers_inside` gives all.
        products: pairs of layers that become one each, with a weight of its own.

    Returns:
        The model itself where there is nothing to open.

    Raises:
        PlanError: the model has no such pair of layers.
    """
    asked = set(names)
    if not products and not _wanted(model, asked):
        return model
    twin = copied(model, share=True)
    open_in_place(twin, asked, products, own=False)
    return twin


def open_in_place(
    model: nn.Module, names: Iterable[str], products: Products = MappingProxyType({}), *, own: bool = True
) -> None:
    """Opens a network itself, as `opened`.

    Args:
        model: changed.
        names, products: as for `opened`.
        own: give the layers weights of their own; False lets them share the memory of those that were there.
    """
    made: dict[nn.Module, nn.Module] = {}
    for name, (attention, kind) in _wanted(model, set(names)).items():
        if attention not in made:
            made[attention] = kind(attention, own=own)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, made[attention])
    join_in_place(model, products)


def layers_inside(model: nn.Module, samples: Samples) -> list[str]:
    """Names of the layers that attention has inside, each opened as suits it.

    Args:
        model: runs once where it has attention whose q, k and v may be one layer.
        samples: what it runs on.

    Raises:
        ModelError: it cannot take the samples.
    """
    closed = _closed(model)
    packed: set[nn.Module] = {
        module
        for module in closed.values()
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None
    }
    if packed:
        packed &= _on_one_tensor(model, packed, samples)
    names = []
    for name, module in closed.items():
        first, *others = _KINDS[_kind(module)].values()
        layers = others[0] if others and module not in packed else first
        names += [f"{name}.{layer}" for layer in layers]
    return names


def _on_one_tensor(model: nn.Module, attentions: set[nn.Module], samples: Samples) -> set[nn.Module]:
    """Those that run, and are called with one tensor for query, key and value each time."""
    seen: dict[nn.Module, bool] = {}

    def look(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        given = [*inputs[:3], *(keywords[name] for name in ("query", "key", "value") if name in keywords)]
        seen[module] = seen.get(module, True) and len({id(tensor) for tensor in given}) == 1

    handles = [module.register_forward_pre_hook(look, with_kwargs=True) for module in attentions]
    try:
        with evaluating(model), torch.no_grad(), same_noise():
            run(model, samples)
    finally:
        for handle in handles:
            handle.remove()
    return {module for module, alone in seen.items() if alone}


def _closed(model: nn.Module) -> dict[str, nn.Module]:
    """What can be opened, by every name; a module of one's own kind may compute something else."""
    return {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if _kind(module) in _KINDS and name and not _is_special(module)
    }


def _wanted(model: nn.Module, asked: set[str]) -> dict[str, tuple[nn.Module, type[nn.Module]]]:
    """What is to be opened, by every name, and what it becomes."""
    closed = _closed(model)
    kinds = {
        module: kind
        for name, module in closed.items()
        for kind, layers in _KINDS[_kind(module)].items()
        if any(f"{name}.{layer}" in asked for layer in layers)
    }
    return {name: (module, kinds[module]) for name, module in closed.items() if module in kinds}


def _kind(module: nn.Module) -> tuple[str, str]:
    return type(module).__module__, type(module).__qualname__


def _is_special(module: nn.Module) -> bool:
    """Whether there is something on it, or on a layer of its, that a replacement would lose."""
    return any(
        bool(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks)
        or hasattr(part, "parametrizations")
        for part in module.modules()
    )
