"""Why a network cannot be compressed, or a layer has to stay as it is; and what to do about it."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..errors import ModelError
from ..lowrank.costs import break_even_rank
from ..lowrank.forms import forms_for
from ..lowrank.layers import LowRank
from ..lowrank.shapes import KINDS, LayerShape

_OLD_NORMS: dict[type, str] = {
    WeightNorm: "torch.nn.utils.remove_weight_norm",
    SpectralNorm: "torch.nn.utils.remove_spectral_norm",
}
"""Hooks that compute a weight anew in each call, and what takes them off."""

_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")


def refuse(model: nn.Module) -> None:
    """Raises ModelError, with a remedy, where no survey can be made."""
    for wrapped, remedy in (
        (isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)), "model.module"),
        (hasattr(model, "_orig_mod"), "model._orig_mod"),
    ):
        if wrapped:
            raise ModelError(f"the model is wrapped in {type(model).__name__}; pass {remedy} instead")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("the model is a TorchScript module, which cannot be rebuilt; pass the Python module")
    for name, module in model.named_modules():
        kind = type(module).__name__
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters(recurse=False)):
            raise ModelError(
                f"{name}: is a {kind} that has never run, and has no weight; run the model on an example, and load "
                "its checkpoint, first"
            )
        if type(module).__module__.startswith(_QUANTIZED):
            raise ModelError(
                f"{name}: is a {kind} of integers; compress the network as it was before it was quantized, and "
                "quantize what comes out"
            )


def obstacle_of(module: nn.Module, shape: LayerShape, tied_to: Collection[str], *, used: bool) -> str | None:
    """Why a layer cannot be replaced, whatever it would save; None where it can.

    Args:
        module: the layer.
        shape: its geometry, with its calls.
        tied_to: names of layers that share a parameter with it.
        used: whether something else reads its weight.
    """
    if isinstance(module, LowRank):
        return f"already factored ({module.form}, rank {module.rank})"
    if not shape.calls:
        return "its weight is read without calling it" if used else "its forward did not run in eval mode"
    kind, plain = type(module), KINDS[shape.kind]
    if any(
        getattr(kind, method, None) is not getattr(plain, method, None) for method in ("forward", "_conv_forward")
    ):
        return f"{kind.__name__} computes something else than {plain.__name__}"
    if parametrize.is_parametrized(module):
        remedy = 'torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")'
        return f"its weight is parametrized; fold it first, by {remedy}"
    for hook in module._forward_pre_hooks.values():
        if type(hook) in _OLD_NORMS:
            return f"its weight is computed by a hook; fold it first, by {_OLD_NORMS[type(hook)]}(layer)"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return "it has hooks that a replacement would lose; remove them first"
    return f"its weight is tied to {min(tied_to)}" if tied_to else None


def too_small(shape: LayerShape) -> str | None:
    """Says so where nothing can be saved."""
    saves = any(break_even_rank(shape, form) for form in forms_for(shape))
    return None if saves else "too small: no rank makes it cheaper"
