"""Fuse: low-rank layers become plain layers, and BatchNorm folds into what stands before it."""

from __future__ import annotations

import torch
from torch import nn

from ..analysis.accuracy import device_of
from ..analysis.inputs import Example, as_samples
from ..analysis.running import copied
from ..errors import ModelError
from .attached import forget_plan, images_of, low_rank_layers, plan_of
from .equalising import equalise as equalise_ranges
from .fold import fold_proved, with_noise
from .trial import Trial


def fuse(model: nn.Module, example: Example | None = None, *, equalise: bool | float = False) -> nn.Module:
    """A copy made of plain layers only, in eval mode, with the same outputs.

    Args:
        model: a converted network.
        example: (N, ...) an input like those to come: it finds out which BatchNorm follows which layer, and proves
            that outputs stay what they are. By default a few of the images that the network was calibrated on, or
            noise of the shape that the plan was made for.
        equalise: give the channels between two factors equal ranges on the example, for integers of 8 bits; tens of
            real images say more than two. A number from 0 to 1 goes so far towards equal ranges only; 0.5 is often
            best. `dprp quantize` does that itself.

    Returns:
        The network in layers of torch's own: two in a row for each low-rank layer, or one where that is cheaper.

    Raises:
        PlanError: the model was never converted, and no example is given.
        ModelError: the model cannot take the example, or plain layers would not compute the same.
    """
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    if example is None:
        example = images_of(model)
    if example is None:
        example = torch.zeros(1, *plan_of(model).input_shape, device=device_of(model), dtype=first.dtype)
    fused = copied(model).eval()
    forget_plan(fused)
    by_name = dict(fused.named_modules(remove_duplicate=False))
    plain = {layer: layer.fuse().eval() for layer in low_rank_layers(fused).values()}
    for name, module in by_name.items():
        if module in plain:
            parent, _, child = name.rpartition(".")
            setattr(by_name[parent], child, plain[module])
    inputs = with_noise(as_samples(example))
    trial = Trial(model, inputs)
    twin = copied(fused).double() if trial.exact else fused
    wrong = trial.difference(twin, first.dtype)
    if wrong is not None:
        raise ModelError(f"the network in plain layers does not compute what the converted one does: {wrong}")
    fold_proved(fused, inputs)
    if equalise:
        equalise_ranges(fused, as_samples(example), float(equalise))
    return fused
