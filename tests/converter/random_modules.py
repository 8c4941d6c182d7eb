"""Small networks whose parts are drawn at random, as anybody might write them."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn


class EncoderDecoder(nn.Module):
    """(N, 3, *sizes) -> (N, classes), down by convolutions and up by transposed ones, in one to three dimensions."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        self.axes = draw.choice([1, 1, 2, 3, 3])
        width = draw.choice([8, 12])
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[self.axes - 1]
        transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[self.axes - 1]
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[self.axes - 1]
        groups = draw.choice([1, 1, 2])
        self.stem = convolution(3, width, 3, padding=1, padding_mode=draw.choice(["zeros", "replicate", "circular"]))
        self.down = convolution(width, 2 * width, draw.choice([2, 3]), stride=2, padding=draw.choice([0, 1]))
        self.inner = convolution(2 * width, 2 * width, 3, padding="same", dilation=draw.choice([1, 2]), groups=groups)
        kernel, stride = draw.choice([(2, 2), (3, 2), (4, 2), (3, 1)])
        self.up = transposed(
            2 * width, width, kernel, stride, padding=draw.choice([0, 1]), output_padding=stride - 1, groups=groups,
            bias=draw.random() < 0.5,
        )  # fmt: skip
        self.norms = nn.ModuleList([norm(width), norm(2 * width), norm(2 * width), norm(width)])
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip((self.stem, self.down, self.inner, self.up), self.norms, strict=True):
            x = norm(layer(x)).relu()
        return self.head(x.flatten(2).mean(2))


class RandomNet(nn.Module):
    """(N, 3, 12, 12) -> (N, classes), through a few blocks drawn at random."""

    axes = 2

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        width = draw.choice([8, 12, 16])
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=draw.random() < 0.5)
        self.stem_norm = nn.BatchNorm2d(width) if draw.random() < 0.7 else nn.Identity()
        self.blocks = nn.ModuleList(_block(draw, width) for _ in range(draw.randint(1, 3)))
        if draw.random() < 0.3:  # one module in two places
            self.blocks.append(draw.choice(list(self.blocks)))
        self.head = draw.choice([VectorHead, TokenHead, MapHead])(draw, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(x)).relu()
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def _block(draw: random.Random, width: int) -> nn.Module:
    return draw.choice([Residual, Branches, Repeated, Tied, Constant])(draw, width)


def _conv(draw: random.Random, width: int, **options: Any) -> nn.Conv2d:
    """Keeps width and map; everything else is drawn."""
    kernel = draw.choice([(1, 1), (3, 3), (3, 3), (5, 5), (1, 3), (5, 3)])
    dilation = draw.choice([(1, 1), (1, 1), (2, 1)])
    same = draw.random() < 0.3
    padding = "same" if same else tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    settings: dict[str, Any] = {
        "kernel_size": kernel,
        "dilation": dilation,
        "padding": padding,
        "padding_mode": draw.choice(["zeros", "zeros", "reflect", "replicate", "circular"]),
        "groups": draw.choice([1, 1, 1, 2, width]),
        "bias": draw.random() < 0.5,
    }
    return nn.Conv2d(width, width, **(settings | options))


def _norm(draw: random.Random, width: int) -> nn.Module:
    return nn.BatchNorm2d(width, affine=draw.random() < 0.8) if draw.random() < 0.7 else nn.Identity()


class Residual(nn.Module):
    """With norms before, after or on both sides."""

    def __init__(self, draw: random.Random, width: int) -> None:
        super().__init__()
        self.before, self.conv, self.after = _norm(draw, width), _conv(draw, width), _norm(draw, width)
        self.by_name = draw.random() < 0.3

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        y = self.after(self.conv(input=y) if self.by_name else self.conv(y))
        return x + y.relu()


class Branches(nn.Module):
    """Two ways, one of them read twice, one strided."""

    def __init__(self, draw: random.Random, width: int) -> None:
        super().__init__()
        self.left, self.right = _conv(draw, width), _conv(draw, width)
        self.norm, self.other = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.strided = nn.Conv2d(width, width, 3, stride=2, padding=1, groups=draw.choice([1, 4]))
        self.leak = draw.choice(["two norms", "sum", "none"])

    def forward(self, x: Tensor) -> Tensor:
        y = self.left(x)
        z = self.norm(y)
        if self.leak == "two norms":
            z = z + self.other(y)
        elif self.leak == "sum":
            z = z + y
        return z.relu() + self.right(x) + self.strided(x).mean((2, 3), keepdim=True)


class Repeated(nn.Module):
    """One layer called twice, with one norm for both."""

    def __init__(self, draw: random.Random, width: int) -> None:
        super().__init__()
        self.conv, self.norm = _conv(draw, width), _norm(draw, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm(self.conv(x)).relu()
        return x + self.norm(self.conv(x)).relu()


class Tied(nn.Module):
    """Two layers that share their weight."""

    def __init__(self, draw: random.Random, width: int) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.two.weight = self.one.weight
        self.norm = _norm(draw, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.norm(self.one(x)).relu())


class Constant(nn.Module):
    """A branch that does not carry the batch."""

    def __init__(self, draw: random.Random, width: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(draw.choice([1, 7]), width))
        self.dense, self.conv = nn.Linear(width, width), _conv(draw, width)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.conv(x)).relu() * self.dense(self.table).mean(0)[:, None, None]


class VectorHead(nn.Module):
    """Dense layers on (N, C), with a norm."""

    def __init__(self, draw: random.Random, width: int) -> None:
        super().__init__()
        self.dense, self.last = nn.Linear(width, 24, bias=draw.random() < 0.5), nn.Linear(24, 10)
        self.norm = nn.BatchNorm1d(24) if draw.random() < 0.7 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.dense(x.mean((2, 3)))).relu())


class TokenHead(nn.Module):
    """Dense layers on (N, L, C), or (L, N, C), the second with a norm whose axis is not theirs."""

    def __init__(self, draw: random.Random, width: int) -> None:
        super().__init__()
        self.dense, self.across, self.last = nn.Linear(width, 36), nn.Linear(36, 36), nn.Linear(36, 10)
        self.norm = nn.BatchNorm1d(36)
        self.first = draw.random() < 0.5

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, ::2, ::2].flatten(2).mT  # (N, 36, C)
        x = self.dense(x.transpose(0, 1)).transpose(0, 1) if self.first else self.dense(x)
        return self.last(self.norm(self.across(x.relu())).mean(1))


class MapHead(nn.Module):
    """Dense layers on (N, H, W, C)."""

    def __init__(self, draw: random.Random, width: int) -> None:
        super().__init__()
        self.dense, self.last = nn.Linear(width, 20, bias=draw.random() < 0.5), nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dense(x.permute(0, 2, 3, 1)).relu()).mean((1, 2))
