"""Which axis of a layer's input counts the images: found by changing their order, not by guessing from sizes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .inputs import Samples
from .probe import evaluating, layer_input
from .running import run, same_noise

_IMAGES = 3
_ORDER = (1, 2, 0)  # no image stays where it was

_UNEXPLAINED = 0.05
"""Part of a change that the new order need not explain: half precision rounds by the place in a batch."""

_NOTHING = 1e-6
"""Relative change of an input that tells nothing."""


@torch.no_grad()
def batch_axes(model: nn.Module, names: Iterable[str], images: Samples) -> dict[str, int | None]:
    """The axis along which each layer's input is made of one block for each image.

    Args:
        model: runs twice, on three images and on the same in another order.
        names: layers.
        images: (N, ...), N >= 1; noise makes up for missing ones of a tensor.

    Returns:
        The axis of the layer's first input, by name; None where there is none: the input is the same for all images,
        holds one image only, mixes them, or the layer did not run.
    """
    few = images[:_IMAGES]
    if len(few) < _IMAGES and isinstance(few, Tensor) and few.is_floating_point():
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn((_IMAGES - len(few), *few.shape[1:]), generator=generator).to(few)
        few = torch.cat([few, noise * few.std() + few.mean() if few.numel() > 1 else noise])
    if len(few) < _IMAGES:
        return dict.fromkeys(names, 0)
    order = torch.tensor(_ORDER, device=few.device)
    wanted = list(names)
    before, after = _inputs(model, wanted, few), _inputs(model, wanted, few[order])
    return {
        name: _axis(before[name], after[name], order) if name in before and name in after else None for name in wanted
    }


def _inputs(model: nn.Module, names: list[str], images: Samples) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}

    def look(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            given = layer_input(inputs, keywords)
            if given is not None:
                seen.setdefault(name, given.detach().clone())

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(look(name), with_kwargs=True) for name in names]
    try:
        with evaluating(model), same_noise():
            run(model, images)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _axis(before: Tensor, after: Tensor, order: Tensor) -> int | None:
    if before.shape != after.shape or before.numel() == 0:
        return None
    change = float((after.double() - before.double()).norm())
    if change <= _NOTHING * float(before.double().norm()):
        return None
    for axis, size in enumerate(before.shape):
        if size % len(order):
            continue
        blocks = before.reshape(*before.shape[:axis], len(order), -1, *before.shape[axis + 1 :])
        turned = blocks.index_select(axis, order).reshape(before.shape)
        if float((turned.double() - after.double()).norm()) <= _UNEXPLAINED * change:
            return axis
    return None
