"""Which BatchNorm reads a layer's output, and nothing else does."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ..lowrank.products import BatchNorm
from ..lowrank.shapes import Plain, shape_of
from .inputs import Samples
from .sole_readers import Reader, sole_readers

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


class Pair(NamedTuple):
    """Names of a layer and of the BatchNorm that follows it."""

    layer: str
    norm: str


def norm_pairs(model: nn.Module, inputs: Sequence[Samples]) -> list[Pair]:
    """Layers whose output a BatchNorm reads and nothing else, as one forward pass on each input shows it.

    Args:
        model, inputs: as for `sole_readers`.

    Returns:
        In the order of the layers.
    """
    names = {module: name for name, module in model.named_modules()}
    readers = sole_readers(model, inputs)
    return [
        Pair(name, names[readers[layer].module])
        for layer, name in names.items()
        if layer in readers and norm_after(layer, readers[layer]) is not None
    ]


def norm_scales(model: nn.Module, inputs: Sequence[Samples]) -> dict[str, Tensor]:
    """(outputs,) by layer: the deviation of each channel behind the BatchNorm that follows, where there is one.

    Args:
        model, inputs: as for `norm_pairs`.
    """
    norms = {pair.layer: model.get_submodule(pair.norm) for pair in norm_pairs(model, inputs)}
    return {layer: _scale(norm) for layer, norm in norms.items() if isinstance(norm, BatchNorm)}


def takes_up_means(model: nn.Module, names: Iterable[str], behind: Collection[str]) -> set[str]:
    """Which of these layers can lose the mean of their output without loss: those with a bias, or a norm behind.

    Args:
        model: the network.
        names: of its layers.
        behind: names of layers that a norm follows.
    """
    return {name for name in names if name in behind or model.get_submodule(name).bias is not None}


def _scale(norm: BatchNorm) -> Tensor:
    """The norm's weight, and less where a channel hardly varies beside what the norm adds to its variance."""
    assert norm.running_var is not None, "a norm of each batch's own statistics is no reader"
    varies = norm.running_var.cpu()
    shares = (varies / (varies + norm.eps)).sqrt()
    return shares if norm.weight is None else norm.weight.detach().cpu() * shares


def norm_after(layer: nn.Module, reader: Reader) -> BatchNorm | None:
    """The reader, if it is a norm of this layer's output channels."""
    if not isinstance(layer, Plain) or not isinstance(reader.module, BatchNorm):
        return None
    kind, axes = _NORM_AFTER[type(layer)]
    fits = type(reader.module) is kind and reader.axes == axes
    return reader.module if fits and shape_of(layer).outputs == reader.module.num_features else None
