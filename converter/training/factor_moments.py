"""Second moments of what low-rank layers see, for cuts that lose the least of their outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..analysis.accuracy import device_of
from ..analysis.calibration import RIDGE, Moments
from ..analysis.inputs import Samples
from ..analysis.memory import images_in_memory
from ..analysis.probe import evaluating, layer_input
from ..analysis.running import named, run
from ..conversion.attached import low_rank_layers
from ..lowrank.decomposition import regularised
from ..lowrank.forms import Form, matrix_size
from ..lowrank.layers import LowRank
from ..lowrank.moments import LARGEST_MOMENT, pair_moments

_IMAGES = 512


@torch.no_grad()
def input_moments(model: nn.Module, images: Samples) -> Moments:
    """Measures E[x x^T] in front of each low-rank layer, in one forward pass.

    Args:
        model: a converted network.
        images: (N, ...) calibration inputs, of which at most 512 are used.

    Returns:
        Moments (columns, columns) in float32 on the CPU, by layer and form, regularised; layers with more than 6144
        columns are left out, and cut by their weights alone.
    """
    layers = low_rank_layers(model)
    found: dict[tuple[str, Form], Tensor] = {}

    def measure(name: str, layer: LowRank) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            given = layer_input(inputs, keywords)
            if given is not None and (name, layer.form) not in found:  # a shared module's first call stands for all
                with named(name, "measuring its inputs"):
                    moment = pair_moments(given, given, layer.shape, layer.form).second
                found[name, layer.form] = regularised(moment, RIDGE).float().cpu()

        return hook

    handles = [
        layer.register_forward_pre_hook(measure(name, layer), with_kwargs=True)
        for name, layer in layers.items()
        if matrix_size(layer.shape, layer.form)[1] <= LARGEST_MOMENT
    ]
    try:
        with evaluating(model):
            few = images_in_memory([layer.shape for layer in layers.values()], min(_IMAGES, len(images)))
            run(model, images[:few].to(device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    return found
