"""Calibrate: what a few hundred images tell about each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..lowrank.decomposition import output_tail_energies, tail_energies
from ..lowrank.forms import Form, forms_for, matricise, matrix_size
from ..lowrank.moments import pair_moments
from ..lowrank.shapes import LayerShape
from .accuracy import device_of
from .batch_axis import batch_axes
from .inputs import Example, Inputs, Samples, as_samples, joined
from .layout import laid_out
from .memory import images_in_memory, images_in_step
from .norm_pairs import norm_pairs, takes_up_means
from .opening import opened
from .output_metrics import OutputMetrics, output_metrics
from .probe import evaluating, layer_input
from .running import finite, named, run, tensors_in
from .surveying import Layer, Survey

Moments = Mapping[tuple[str, Form], Tensor]
"""Second moments of what a layer's first factor sees, (columns, columns), by layer name and form."""

Energies = Mapping[tuple[str, Form], Tensor]
"""What a layer loses in a form at each rank, (full rank + 1,); entry 0 is what losing all of it costs."""

RIDGE = 1e-4
"""Added to second moments, relative to the mean of their diagonal."""

_PLANNING_IMAGES = 128
"""Errors for planning are means over this many images at most: they settle long before that."""

_FEWEST_FEELING, _MOST_FEELING = 64, 256
"""Images whose answers say what they feel of each output: one sample each, where maps have thousands."""

_FEELING_MACS = 6e11
"""Multiply-adds to spend on these: about 6 s on two cores."""


@dataclass(frozen=True)
class Calibration:
    """Images, and what each layer would lose on them.

    Attributes:
        images: (N, C, H, W) as the network takes them; conversion fits its layers on these.
        energies: squared error of a layer's output by (layer, form), at each rank from 0 to full; of what varies in
            it, where a bias or a norm takes up its mean.
        metrics: in which conversion cuts layers, by what the answers feel of each; without one, every output of a
            layer counts the same.
    """

    images: Samples
    energies: Energies = field(repr=False)
    metrics: OutputMetrics = field(default_factory=dict, repr=False)


@torch.no_grad()
def calibrate(
    model: nn.Module,
    layers: Survey,
    batches: Samples | Iterable[Example],
    *,
    images: int = 2000,
    on_layer: Callable[[str], None] | None = None,
) -> Calibration:
    """Measures what each layer would lose at each rank in one forward pass, and what the answers feel of it.

    Args:
        model: the dense network that `layers` was made from.
        layers: its survey.
        batches: images (N, C, H, W), or batches of them: images, or tuples whose first element is the images; labels
            are not used. `Inputs` where the network takes several.
        images: how many to use at most; fewer where these are more than walk in step, see `images_in_step`.
        on_layer: is told the name of each layer when it is done.

    Returns:
        The images and the errors. Moments are made layer by layer and dropped again, so memory is bounded by the
        activations of 128 images.

    Raises:
        ModelError: no images, images or weights that are not finite, or images that the model cannot take.
    """
    model = opened(model, [layer.name for layer in layers], layers.products)
    # More would not be used by the conversion either.
    shapes = [layer.shape for layer in layers]
    sample = _gather(batches, images_in_step(shapes, images)).to(device_of(model))
    sample = laid_out(model, sample)
    if not all(finite(tensor) for tensor in tensors_in(sample) if tensor.is_floating_point()):
        raise ModelError("the calibration images hold values that are not finite; check the data")
    wanted = {layer.name: layer for layer in layers if layer.reason is None}
    for layer in wanted.values():
        assert layer.weight is not None
        if not finite(layer.weight):
            raise ModelError(f"{layer.name}: its weight holds values that are not finite; repair the checkpoint")
    modules = dict(model.named_modules())
    axes = batch_axes(model, wanted, sample)
    centred = takes_up_means(model, wanted, {pair.layer for pair in norm_pairs(model, [sample[:2]])})
    felt_by = sample[: _images_to_feel(layers.macs)]
    metrics = output_metrics(
        model, {name: layer.shape for name, layer in wanted.items() if layer.shape}, felt_by, axes
    )
    energies: dict[tuple[str, Form], Tensor] = {}

    def measure(layer: Layer) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Tensor) -> None:
            given = layer_input(inputs, keywords)
            # A shared module's first call stands for all.
            if given is None or any((layer.name, form) in energies for form in Form):
                return
            with named(layer.name, "measuring what it would lose"), torch.autocast(given.device.type, enabled=False):
                if axes[layer.name] is None:
                    energies.update(_weight_energies(layer))
                else:
                    metric = metrics.get(layer.name)
                    energies.update(_layer_energies(layer, given, output, layer.name in centred, metric))
            if on_layer is not None:
                on_layer(layer.name)

        return hook

    handles = [
        modules[name].register_forward_hook(measure(layer), with_kwargs=True) for name, layer in wanted.items()
    ]
    try:
        with evaluating(model):
            run(model, sample[: images_in_memory(shapes, _PLANNING_IMAGES)])
    finally:
        for handle in handles:
            handle.remove()
    for layer in wanted.values():  # another branch was taken
        if not any((layer.name, form) in energies for form in Form):
            energies.update(_weight_energies(layer))
    return Calibration(sample, energies, metrics)


def _images_to_feel(macs: int) -> int:
    """As many as the time allows, a pass forward and back being three."""
    return max(_FEWEST_FEELING, min(_MOST_FEELING, int(_FEELING_MACS / max(1, 3 * macs))))


def _gather(batches: Samples | Iterable[Example], images: int) -> Any:
    parts: list[Samples] = []
    if isinstance(batches, (Tensor, Inputs)):
        parts = [batches[:images]]
    else:
        have = 0
        for batch in batches:
            first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
            if not isinstance(first, (Tensor, Inputs, tuple, list, dict)):
                raise ModelError(
                    f"a calibration batch is a {type(batch).__name__}; give images (N, ...), or tuples whose first "
                    "element is the images"
                )
            part = as_samples(first)
            if isinstance(part, Tensor) and parts and part.shape[1:] != parts[0].shape[1:]:
                raise ModelError(
                    f"calibration images have shapes {tuple(parts[0].shape[1:])} and {tuple(part.shape[1:])}; give "
                    "them one size"
                )
            parts.append(part[: images - have])
            have += len(parts[-1])
            if have >= images:
                break
    if not parts or sum(len(part) for part in parts) == 0:
        raise ModelError("there are no calibration images; give a data set with training images")
    return joined(parts)


def _weight_energies(layer: Layer) -> dict[tuple[str, Form], Tensor]:
    """As if every direction of input counted the same: for layers whose input does not carry the images."""
    assert layer.shape is not None
    assert layer.weight is not None
    return {
        (layer.name, form): tail_energies(matricise(layer.weight, layer.shape, form)).cpu()
        for form in forms_for(layer.shape)
    }


def _layer_energies(
    layer: Layer, x: Tensor, y: Tensor, centred: bool, metric: Tensor | None
) -> dict[tuple[str, Form], Tensor]:
    assert layer.shape is not None
    assert layer.weight is not None
    if not finite(x) or not finite(y):
        raise ModelError(
            f"{layer.name}: its inputs or outputs hold values that are not finite on the calibration images; check "
            "the weights of the layers before it"
        )
    found = {}
    for form in forms_for(layer.shape):
        rows, columns = matrix_size(layer.shape, form)
        matrix = matricise(layer.weight, layer.shape, form)
        if form is Form.CHANNEL and rows <= columns:
            # The error of the best fit is the tail of the output's own second moment, which is far smaller.
            energy = output_tail_energies(_moment(_products(y, layer.shape, centred)), metric)
        else:
            moments = pair_moments(x, x, layer.shape, form)
            energy = tail_energies(matrix, (moments.centred() if centred else moments).ridged(RIDGE), metric)
        found[layer.name, form] = energy.cpu()
    return found


def _products(y: Tensor, shape: LayerShape, centred: bool) -> Tensor:
    """Outputs, less their means: (groups, outputs / groups, samples) float32.

    Args:
        y: (N, outputs, ...) or (outputs, ...); (..., outputs) for a linear layer.
        centred: whether the means are taken off; a layer without a bias keeps them.
    """
    columns = y.movedim(shape.channel_axis(y.dim()), 0).reshape(shape.outputs, -1).float()
    if centred:
        columns = columns - columns.mean(-1, keepdim=True)
    return columns.reshape(shape.groups, shape.outputs // shape.groups, -1)


def _moment(products: Tensor) -> Tensor:
    second = (products @ products.mT).double() / max(1, products.shape[-1])
    if not finite(second):
        raise ModelError(
            f"its outputs are too large to square (largest {float(products.abs().max()):.3g}); scale the images as "
            "the network was trained on them"
        )
    return second
