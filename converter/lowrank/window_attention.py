"""Swin's attention with projections that are called: what torchvision computes in one function of their weights.

Within windows of h x w positions, shifted by half a window in every other block:

    y = proj( softmax( s q k^T + bias + mask ) v ),  (q, k, v) = qkv(x)

with s = 1 / sqrt(d), or in V2 with q and k of length one and s learned by head.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class OpenWindowAttention(nn.Module):
    """Shifted window attention: (N, H, W, C) -> (N, H, W, C).

    Args:
        attention: torchvision's ShiftedWindowAttention or its V2, whose function this computes and whose layers,
            parameters and buffers it takes, under their names.
        own: False shares them; True takes copies.

    Source: Liu et al. (2021, 2022), as torchvision has it.
    """

    qkv: nn.Module
    proj: nn.Module
    logit_scale: Tensor

    def __init__(self, attention: Any, *, own: bool = True) -> None:
        super().__init__()
        self.window_size, self.shift_size = list(attention.window_size), list(attention.shift_size)
        self.num_heads = attention.num_heads
        self.attention_dropout, self.dropout = attention.attention_dropout, attention.dropout
        source = copy.deepcopy(attention) if own else attention
        for kinds in ("_parameters", "_buffers", "_modules"):
            getattr(self, kinds).update(getattr(source, kinds))
        self._bias = type(attention).get_relative_position_bias
        self.cosine = hasattr(attention, "logit_scale")
        qkv = self.qkv
        if self.cosine and isinstance(qkv, nn.Linear) and qkv.bias is not None:  # V2 leaves out the bias of k
            kept = qkv.bias.detach().clone()
            kept[len(kept) // 3 : 2 * len(kept) // 3] = 0.0
            with torch.device("meta"):
                self.qkv = layer = nn.Linear(qkv.in_features, qkv.out_features)
            layer.weight = qkv.weight
            layer.bias = nn.Parameter(kept, qkv.bias.requires_grad)
        self.train(attention.training)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C), any H and W."""
        batch, height, width, channels = x.shape
        rows, columns = self.window_size
        x = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        padded = x.shape[1], x.shape[2]
        shift = [
            0 if window >= size else by
            for window, size, by in zip(self.window_size, padded, self.shift_size, strict=True)
        ]
        if any(shift):
            x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
        down, across = padded[0] // rows, padded[1] // columns
        windows = x.view(batch, down, rows, across, columns, channels).permute(0, 1, 3, 2, 4, 5)
        windows = windows.reshape(batch * down * across, rows * columns, channels)
        answer = self.proj(self._attended(windows, self._mask(x, padded, shift)))
        answer = F.dropout(answer, self.dropout, self.training)
        answer = answer.view(batch, down, across, rows, columns, channels).permute(0, 1, 3, 2, 4, 5)
        answer = answer.reshape(batch, *padded, channels)
        if any(shift):
            answer = torch.roll(answer, (shift[0], shift[1]), (1, 2))
        return answer[:, :height, :width, :].contiguous()

    def get_relative_position_bias(self) -> Tensor:
        """(1, heads, positions, positions)."""
        bias: Tensor = self._bias(self)
        return bias

    def _attended(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        count, positions, channels = windows.shape
        qkv = self.qkv(windows).reshape(count, positions, 3, self.num_heads, channels // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if self.cosine:
            scale = torch.clamp(self.logit_scale, max=math.log(100.0)).exp()
            scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * scale
        else:
            scores = (q * q.shape[-1] ** -0.5) @ k.mT
        scores = scores + self.get_relative_position_bias()
        if mask is not None:
            scores = scores.view(-1, len(mask), self.num_heads, positions, positions) + mask.unsqueeze(1)
            scores = scores.view(-1, self.num_heads, positions, positions)
        weights = F.dropout(scores.softmax(-1), self.attention_dropout, self.training)
        answer: Tensor = weights @ v
        return answer.transpose(1, 2).reshape(count, positions, channels)

    def _mask(self, x: Tensor, size: tuple[int, int], shift: list[int]) -> Tensor | None:
        """(windows, positions, positions): what was rolled in from the other side is not looked at."""
        if not any(shift):
            return None
        regions = x.new_zeros(size)
        parts = [
            (slice(0, -window), slice(-window, -by), slice(-by, None))
            for window, by in zip(self.window_size, shift, strict=True)
        ]
        for number, (down, across) in enumerate((one, other) for one in parts[0] for other in parts[1]):
            regions[down, across] = number
        rows, columns = self.window_size
        regions = regions.view(size[0] // rows, rows, size[1] // columns, columns).permute(0, 2, 1, 3)
        regions = regions.reshape(-1, rows * columns)
        apart = regions.unsqueeze(1) - regions.unsqueeze(2)
        return torch.zeros_like(apart).masked_fill(apart != 0, -100.0)
