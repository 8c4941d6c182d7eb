"""Networks whose attention is open: it calls layers, where it read their weights before."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ..lowrank.attention import OpenAttention
from ..lowrank.window_attention import OpenWindowAttention
from .running import copied

_MULTI_HEAD = ("torch.nn.modules.activation", "MultiheadAttention")
_SWIN = "torchvision.models.swin_transformer"

# By module and name: torchvision's are not imported for networks of other kinds.
_KINDS: dict[tuple[str, str], tuple[type[nn.Module], tuple[str, ...]]] = {
    _MULTI_HEAD: (OpenAttention, ("q_proj", "k_proj", "v_proj")),
    (_SWIN, "ShiftedWindowAttention"): (OpenWindowAttention, ("qkv", "proj")),
    (_SWIN, "ShiftedWindowAttentionV2"): (OpenWindowAttention, ("qkv", "proj")),
}
"""What each becomes, and the layers whose names ask for it."""


def opened(model: nn.Module, names: Iterable[str] | None = None) -> nn.Module:
    """A network with the same function, and the same weights in memory, in which attention's projections are layers.

    Args:
        model: untouched.
        names: of layers that are asked for, as `Survey` and `Plan` have them; attention none of whose new layers is
            among them stays closed. None opens all.

    Returns:
        The model itself where there is nothing to open.
    """
    if not _closed(model, names):
        return model
    twin = copied(model, share=True)
    open_in_place(twin, names, own=False)
    return twin


def open_in_place(model: nn.Module, names: Iterable[str] | None = None, *, own: bool = True) -> None:
    """Opens the attention of a network itself, as `opened`.

    Args:
        model: changed.
        names: as for `opened`.
        own: give the layers weights of their own; False lets them share the memory of those that were there.
    """
    made: dict[nn.Module, nn.Module] = {}
    for name, attention in _closed(model, names).items():
        kind, _ = _KINDS[_kind(attention)]
        if attention not in made:
            made[attention] = kind(attention, own=own)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, made[attention])


def _closed(model: nn.Module, names: Iterable[str] | None) -> dict[str, nn.Module]:
    """What is to be opened, by every name; a module of one's own kind may compute something else."""
    found = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if _kind(module) in _KINDS and name and not _is_special(module)
    }
    if names is None:
        return found
    asked = set(names)
    wanted = {
        module
        for name, module in found.items()
        if any(f"{name}.{layer}" in asked for layer in _KINDS[_kind(module)][1])
    }
    return {name: module for name, module in found.items() if module in wanted}


def _kind(module: nn.Module) -> tuple[str, str]:
    return type(module).__module__, type(module).__qualname__


def _is_special(module: nn.Module) -> bool:
    """Whether there is something on it, or on a layer of its, that a replacement would lose."""
    return any(
        bool(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks)
        or hasattr(part, "parametrizations")
        for part in module.modules()
    )
