"""One forward pass that notes which layers run, on which maps, and what each call costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ModelError
from .layers import LowRank
from .shapes import Map

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


@dataclass(frozen=True)
class Call:
    maps: tuple[Map, ...]
    macs: int


def probe(model: nn.Module, example: Tensor) -> dict[nn.Module, list[Call]]:
    """Calls of each layer in one forward pass, in order of first call."""
    samples = example.shape[0] if example.dim() else 0
    if samples < 1:
        raise ModelError(f"the example input has shape {tuple(example.shape)}; give at least one sample (N, ...)")
    calls: dict[nn.Module, list[Call]] = {}

    def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            calls.setdefault(module, []).append(_call(module, inputs[0], output, samples))

    layers = [m for m in model.modules() if isinstance(m, (*CONVOLUTIONS, nn.Linear, LowRank))]
    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        with evaluating(model), torch.no_grad():
            model(example)
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"the model cannot take an input of shape {tuple(example.shape)} ({first_line}); give the shape it "
            "was made for (--input CxHxW)"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _call(module: nn.Module, given: Tensor, made: Tensor, samples: int) -> Call:
    if isinstance(module, LowRank):
        dense = _maps(given, made, samples, spatial=module.shape.kind == "conv2d")
        shape = module.shape.with_calls(dense)
        first, second = module.factor_shapes_on(shape)
        return Call(dense, first.macs + second.macs)
    if isinstance(module, nn.Linear):
        return Call(_maps(given, made, samples, spatial=False), made.numel() * module.in_features // samples)
    weight = module.weight
    assert isinstance(weight, Tensor)
    transposed = isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    # Each input pixel of a transposed convolution, each output pixel of a plain one, meets one filter.
    macs = (given if transposed else made).numel() * weight[0].numel() // samples
    spatial = isinstance(module, nn.Conv2d)
    return Call(_maps(given, made, samples, spatial=True) if spatial else (), macs)


def _maps(given: Tensor, made: Tensor, samples: int, *, spatial: bool) -> tuple[Map, ...]:
    if not spatial:
        rows = made.numel() // made.shape[-1] // samples
        return (Map(1, rows, 1, rows),)
    one = Map(given.shape[-2], given.shape[-1], made.shape[-2], made.shape[-1])
    # A model may fold time or windows into the batch: then one sample makes several maps.
    repeats = max(1, (made.shape[0] if made.dim() == 4 else 1) // samples)
    return (one,) * repeats


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
