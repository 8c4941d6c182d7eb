"""Layers that hold their weight as u diag(s) v."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .decomposition import Factors
from .forms import Form, factor_shapes, factor_weights, full_rank, matrix_size, rebuild
from .plain import ConvFace, LinearFace, fused_pair, plain_layer
from .shapes import LayerShape

# Of the dense MACs: two thin convolutions move more memory per MAC than one (benchmarks/one_step_or_two.py).
_TWO_STEPS_PAY_BELOW = 0.7


class TwoSteps(NamedTuple):
    """A low-rank layer as two layers.

    Attributes:
        rank: between them.
        first, second: their geometry.
        most_samples: in a batch of more it is cheaper to build W and to apply it once. Building costs the same
            whatever the batch, so training does it while ranks are high.
    """

    rank: int
    first: LayerShape
    second: LayerShape
    most_samples: float


def _two_steps(shape: LayerShape, form: Form, rank: int) -> TwoSteps:
    first, second = factor_shapes(shape, form, rank)
    gained = first.macs + second.macs - _TWO_STEPS_PAY_BELOW * shape.macs
    return TwoSteps(rank, first, second, math.prod(shape.weight) * rank / gained if gained > 0 else math.inf)


class LowRank(nn.Module):
    """A layer whose weight is u diag(s) v.

    Maps x to W x + bias with W = fold(u diag(s) v); `form` says how the matrix folds into a kernel (see `forms`).
    At full rank this is the layer it came from.

    Args:
        shape: geometry of the layer.
        form: how the kernel was cut.
        factors: u (m, r), s (r,), v (r, n), with a leading axis for more than one group.
        bias: (outputs,) or None.
        layout: in memory, of the kernels that it fuses into.

    Source: DPRP (arXiv 2401.08014) trains u, s and v as parameters of their own.
    """

    def __init__(
        self,
        shape: LayerShape,
        form: Form,
        factors: Factors,
        bias: Tensor | None,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.form = form
        self.layout = layout
        self.u = nn.Parameter(factors.u.contiguous())
        self.s = nn.Parameter(factors.s.contiguous())
        self.v = nn.Parameter(factors.v.contiguous())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self._latest = _two_steps(shape, form, self.rank)

    @classmethod
    def empty(cls, shape: LayerShape, form: Form, rank: int, *, dtype: torch.dtype, device: torch.device) -> LowRank:
        """A layer with room for its tensors and nothing in them yet."""
        rows, columns = matrix_size(shape, form)
        batch = () if shape.groups == 1 else (shape.groups,)

        def room(*size: int) -> Tensor:
            return torch.empty(*size, dtype=dtype, device=device)

        factors = Factors(room(*batch, rows, rank), room(*batch, rank), room(*batch, rank, columns))
        return low_rank(shape, form, factors, room(shape.outputs) if shape.bias else None)

    @property
    def rank(self) -> int:
        """Singular values in use (per group)."""
        return self.s.shape[-1]

    @property
    def full_rank(self) -> int:
        """The rank at which nothing is lost."""
        return full_rank(self.shape, self.form)

    @property
    def factors(self) -> Factors:
        """u, s and v."""
        return Factors(self.u, self.s, self.v)

    @property
    def weight(self) -> Tensor:
        """The dense weight that the factors stand for."""
        return rebuild(self.factors.product(), self.shape, self.form)

    def factor_shapes_on(self, shape: LayerShape) -> tuple[LayerShape, LayerShape]:
        """Geometry of the two layers at today's rank, for the maps of `shape`."""
        return factor_shapes(shape, self.form, self.rank)

    @property
    def steps(self) -> TwoSteps:
        """The two layers at today's rank."""
        if self._latest.rank != self.rank:
            self._latest = _two_steps(self.shape, self.form, self.rank)
        return self._latest

    def kernels(self) -> tuple[Tensor, Tensor]:
        """Kernels of the two layers; the second has the scale."""
        return factor_weights(self.u * self.s.unsqueeze(-2), self.v, self.steps.first, self.steps.second)

    def fuse(self) -> nn.Module:
        """The plain layers that compute the same: two in a row, or one where that is cheaper."""
        first, second = self.steps.first, self.steps.second
        with torch.no_grad():
            factored = (first.macs + second.macs, first.params + second.params)
            if factored >= (self.shape.macs, self.shape.params):  # MACs decide; parameters where these tie
                return plain_layer(self.shape, self.weight, self.bias).to(memory_format=self.layout)
            root = self.s.abs().sqrt().clamp_min(torch.finfo(self.s.dtype).tiny)  # half of the scale for each
            u, v = self.u * (self.s / root).unsqueeze(-2), root.unsqueeze(-1) * self.v
            inner, outer = factor_weights(u, v, first, second)
            pair = plain_layer(first, inner, None), plain_layer(second, outer, self.bias)
            return fused_pair(self.shape, self.form, *pair).to(memory_format=self.layout)

    def extra_repr(self) -> str:
        return f"{self.shape.inputs}, {self.shape.outputs}, form={self.form}, rank={self.rank}/{self.full_rank}"


class LowRankConv(ConvFace, LowRank):
    """A low-rank convolution, plain or transposed: (N, inputs, ...) -> (N, outputs, ...), or one sample without N."""

    def forward(self, input: Tensor) -> Tensor:
        steps, samples = self.steps, input.shape[0] if input.dim() == 2 + len(self.shape.kernel) else 1
        plain = self.layout is layout_of(input) is torch.contiguous_format
        if samples > steps.most_samples:
            return convolve(input, _contiguous(self.weight) if plain else self.weight, self.bias, self.shape)
        inner, outer = (_contiguous(kernel) if plain else kernel for kernel in self.kernels())
        return convolve(convolve(input, inner, None, steps.first), outer, self.bias, steps.second)


class LowRankLinear(LinearFace, LowRank):
    """A low-rank dense layer: (..., inputs) -> (..., outputs)."""

    @property
    def weight(self) -> Tensor:
        """(outputs, inputs)."""
        return self.factors.product()

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(F.linear(input, self.v) * self.s, self.u, self.bias)


def low_rank(
    shape: LayerShape,
    form: Form,
    factors: Factors,
    bias: Tensor | None,
    layout: torch.memory_format = torch.contiguous_format,
) -> LowRank:
    """The low-rank layer of the right kind."""
    kind = LowRankLinear if shape.linear else LowRankConv
    return kind(shape, form, factors, bias, layout)


def layout_of(tensor: Tensor) -> torch.memory_format:
    """Channels last, or contiguous; the latter where both are the same."""
    for axes, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if tensor.dim() == axes and tensor.is_contiguous(memory_format=layout) and not tensor.is_contiguous():
            return layout
    return torch.contiguous_format


def _contiguous(kernel: Tensor) -> Tensor:
    """With the strides that say so: a convolution hands on their order, even where an axis has a single place."""
    return kernel.flatten().view(kernel.shape)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, shape: LayerShape) -> Tensor:
    """A convolution of this geometry, in every padding mode."""
    operation = _OPERATIONS[shape.kind]
    amounts = tuple(before for before, _ in shape.padding)
    if not shape.transposed and (shape.padding_mode != "zeros" or not shape.even):
        x, amounts = padded(x, shape), (0,) * len(amounts)
    more = {"output_padding": shape.output_padding} if shape.output_padding else {}
    made: Tensor = operation(
        x, weight, bias, stride=shape.stride, padding=amounts, dilation=shape.dilation, groups=shape.groups, **more
    )
    return made


def padded(x: Tensor, shape: LayerShape) -> Tensor:
    """What a convolution's windows lie on."""
    mode = "constant" if shape.padding_mode == "zeros" else shape.padding_mode
    amounts = [amount for pair in reversed(shape.padding) for amount in pair]  # torch begins with the last axis
    return F.pad(x, amounts, mode=mode) if any(amounts) else x


_OPERATIONS: dict[str, Any] = {
    "conv1d": F.conv1d,
    "conv2d": F.conv2d,
    "conv3d": F.conv3d,
    "conv_transpose1d": F.conv_transpose1d,
    "conv_transpose2d": F.conv_transpose2d,
    "conv_transpose3d": F.conv_transpose3d,
}
