"""Plain layers with given weights, alone or two in a row; and what a network may ask of the layer they replace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .forms import Form, rebuild
from .shapes import LayerShape


class ConvFace:
    """What nn.Conv2d exposes besides its weight and bias."""

    if TYPE_CHECKING:
        shape: LayerShape

    @property
    def in_channels(self) -> int:
        return self.shape.inputs

    @property
    def out_channels(self) -> int:
        return self.shape.outputs

    @property
    def kernel_size(self) -> tuple[int, int]:
        return self.shape.kernel

    @property
    def stride(self) -> tuple[int, int]:
        return self.shape.stride

    @property
    def padding(self) -> tuple[int, int] | str:
        return _padding(self.shape)

    @property
    def dilation(self) -> tuple[int, int]:
        return self.shape.dilation

    @property
    def groups(self) -> int:
        return self.shape.groups

    @property
    def padding_mode(self) -> str:
        return self.shape.padding_mode


class LinearFace:
    """What nn.Linear exposes besides its weight and bias."""

    if TYPE_CHECKING:
        shape: LayerShape

    @property
    def in_features(self) -> int:
        return self.shape.inputs

    @property
    def out_features(self) -> int:
        return self.shape.outputs


class FusedPair(nn.Sequential):
    """The two plain layers that a low-rank layer fuses into; to the rest of the network still one layer."""

    def __init__(self, shape: LayerShape, form: Form, first: nn.Module, second: nn.Module) -> None:
        super().__init__(first, second)
        self.shape = shape
        self.form = form

    @property
    def weight(self) -> Tensor:
        """The dense weight that both layers stand for, made anew at each call: the layers themselves are cheaper."""
        first, second = self._weight(0), self._weight(1)
        if isinstance(self[0], nn.Linear):
            return second @ first
        groups, rank = self.shape.groups, second.shape[1]
        u = second.permute(0, 2, 3, 1).reshape(groups, -1, rank)
        return rebuild(u @ first.reshape(groups, rank, -1), self.shape, self.form)

    @property
    def bias(self) -> nn.Parameter | None:
        """Of the second layer."""
        bias = self[1].bias
        assert bias is None or isinstance(bias, nn.Parameter)
        return bias

    def _weight(self, index: int) -> Tensor:
        weight = self[index].weight
        assert isinstance(weight, Tensor)
        return weight


class FusedConv2d(ConvFace, FusedPair):
    """Two convolutions in a row: (N, inputs, H, W) -> (N, outputs, H', W')."""


class FusedLinear(LinearFace, FusedPair):
    """Two dense layers in a row: (..., inputs) -> (..., outputs)."""


def fused_pair(shape: LayerShape, form: Form, first: nn.Module, second: nn.Module) -> FusedPair:
    """Two plain layers as one of the right kind."""
    kind = FusedLinear if shape.kind == "linear" else FusedConv2d
    return kind(shape, form, first, second)


def _padding(shape: LayerShape) -> tuple[int, int] | str:
    # Only padding="same" makes uneven amounts, and it makes the same ones again.
    return (shape.padding.top, shape.padding.left) if shape.padding.even else "same"


def plain_layer(shape: LayerShape, weight: Tensor, bias: Tensor | None) -> nn.Conv2d | nn.Linear:
    """An `nn.Conv2d` or `nn.Linear` of this geometry with these values."""
    layer: nn.Conv2d | nn.Linear
    if shape.kind == "linear":
        layer = nn.Linear(shape.inputs, shape.outputs, bias is not None, weight.device, weight.dtype)
        weight = weight.reshape(shape.outputs, shape.inputs)
    else:
        layer = nn.Conv2d(
            shape.inputs,
            shape.outputs,
            shape.kernel,
            shape.stride,
            _padding(shape),
            shape.dilation,
            shape.groups,
            bias is not None,
            shape.padding_mode,  # type: ignore[arg-type]
            weight.device,
            weight.dtype,
        )
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(bias)
    return layer
