"""One forward pass that notes which layers run, on which maps, and what each call costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..lowrank.layers import LowRank
from ..lowrank.shapes import LayerShape, Map, Plain, shape_of
from .inputs import Samples
from .outside import OutsideCounter
from .running import run

COUNTED = (Plain, LowRank)
"""Modules with multiply-adds."""


@dataclass(frozen=True)
class Call:
    maps: tuple[Map, ...]
    macs: int


@dataclass(frozen=True)
class Probe:
    """What ran.

    Attributes:
        calls: of each layer, in order of first call.
        outside: multiply-adds of matrix products and convolutions that no layer makes: attention's, for instance.
        read: the `id` of each tensor that something outside of layers reads, weights among them.
    """

    calls: dict[nn.Module, list[Call]]
    outside: int
    read: set[int]


def probe(model: nn.Module, example: Samples) -> Probe:
    """The forward pass of one sample.

    Only the first sample runs, so that nothing has to be divided by a number of samples: a branch that does not carry
    the batch, or one call for each sample, counts as what it is. A network that wants several runs on all of them.
    """
    if not example.shape or len(example) < 1:
        raise ModelError(f"the example input has shape {tuple(example.shape)}; give at least one sample (N, ...)")
    try:
        return _calls(model, example[:1], 1)
    except ModelError:
        if len(example) == 1:
            raise
        return _calls(model, example, len(example))


def layer_input(inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor | None:
    """What a layer was called on, by position or as `input=`."""
    given = inputs[0] if inputs else keywords.get("input")
    return given if isinstance(given, Tensor) else None


def _calls(model: nn.Module, example: Samples, samples: int) -> Probe:
    counter = OutsideCounter()
    calls: dict[nn.Module, list[Call]] = {}

    def record(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        given = layer_input(inputs, keywords)
        if given is not None and isinstance(output, Tensor):
            calls.setdefault(module, []).append(_call(module, given, output, samples))

    layers = [m for m in model.modules() if isinstance(m, COUNTED)]
    handles = [layer.register_forward_hook(record, with_kwargs=True) for layer in layers]
    handles += [handle for layer in layers for handle in counter.leave_out(layer)]
    try:
        with evaluating(model), torch.no_grad(), counter.counting():
            run(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return Probe(calls, counter.macs // samples, counter.read)


def _call(module: nn.Module, given: Tensor, made: Tensor, samples: int) -> Call:
    if isinstance(module, LowRank):
        maps = _maps(given, made, samples, module.shape)
        first, second = module.factor_shapes_on(module.shape.with_calls(maps))
        return Call(maps, first.macs + second.macs)
    assert isinstance(module, Plain)
    shape = shape_of(module)
    maps = _maps(given, made, samples, shape)
    return Call(maps, shape.with_calls(maps).macs)


def _maps(given: Tensor, made: Tensor, samples: int, shape: LayerShape) -> tuple[Map, ...]:
    if shape.linear:
        rows = max(1, made.numel() // made.shape[-1] // samples)
        return (Map((1, rows), (1, rows)),)
    axes = len(shape.kernel)
    one = Map(tuple(given.shape[-axes:]), tuple(made.shape[-axes:]))
    # A model may fold time or windows into the batch: then one sample makes several maps.
    return (one,) * max(1, (made.shape[0] if made.dim() == 2 + axes else 1) // samples)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, each module's own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
