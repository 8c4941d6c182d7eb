"""BatchNorm folded into the layer before it: found by watching the network run, then proved.

A fold is right when the norm reads the layer's output, nothing else does, and both act on the same axis. `norm_pairs`
finds such pairs, but it cannot see what compiled code reads, or what another branch would. So every fold is proved
as well: the outputs stay those of the unfolded network, in float64 where the network allows, and a fold that changes
them is undone.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..analysis.inputs import Example, Inputs, Samples, as_samples
from ..analysis.norm_pairs import Pair, norm_pairs
from ..analysis.running import copied
from ..errors import ConverterWarning, ModelError
from ..lowrank.forms import Form, matricise, rebuild
from ..lowrank.layers import layout_of
from ..lowrank.products import BatchNorm
from ..lowrank.shapes import Plain, shape_of
from .trial import Trial


def fold_batch_norms(model: nn.Module, example: Example) -> nn.Module:
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
    fold_proved(model, with_noise(as_samples(example)))
    return model


def with_noise(example: Samples) -> list[Samples]:
    """An example and, where it holds numbers and not indices, noise of its shape: always the same."""
    if not example.is_floating_point():
        return [example]
    generator = torch.Generator().manual_seed(0)
    if isinstance(example, Inputs):
        return [example, example.noise(generator)]
    return [example, torch.randn(example.shape, generator=generator).to(example)]


def fold_proved(model: nn.Module, inputs: Sequence[Samples]) -> None:
    """Folds in place what can be folded without changing the outputs on these inputs."""
    pairs = norm_pairs(model, inputs)
    if pairs:
        fold(model, _proved(model, pairs, inputs))


def fold(model: nn.Module, pairs: Sequence[Pair]) -> dict[str, nn.Module]:
    """Folds these pairs in place, unproved. Returns the modules that were replaced, by name."""
    before: dict[str, nn.Module] = {}
    for pair in pairs:
        layer, norm = model.get_submodule(pair.layer), model.get_submodule(pair.norm)
        assert isinstance(layer, Plain)
        assert isinstance(norm, BatchNorm)
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


def _folded(layer: Plain, norm: BatchNorm) -> nn.Module:
    def exact(tensor: Tensor | None) -> Any:  # None where there is none, which the signature of torch's helper lacks
        return None if tensor is None else tensor.detach().double()

    shape = shape_of(layer)
    matrix, bias = fuse_conv_bn_weights(
        matricise(exact(layer.weight), shape, Form.CHANNEL).reshape(shape.outputs, -1),
        exact(layer.bias),
        exact(norm.running_mean),
        exact(norm.running_var),
        norm.eps,
        exact(norm.weight),
        exact(norm.bias),
    )
    folded = copy.deepcopy(layer)
    wanted = layer.weight.requires_grad
    weight = rebuild(matrix.detach(), shape, Form.CHANNEL).reshape(layer.weight.shape)
    laid_out = weight.to(layer.weight).contiguous(memory_format=layout_of(layer.weight))
    folded.weight = nn.Parameter(laid_out, wanted)
    folded.bias = nn.Parameter(bias.detach().to(layer.weight), wanted)
    return folded


def _proved(model: nn.Module, pairs: list[Pair], inputs: Sequence[Samples]) -> list[Pair]:
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
