"""Steps of a matrix that are as long along each of its directions.

A factor's gradient has a few strong directions and many weak ones, and small changes of many values add up where they
agree. The nearest matrix with orthonormal rows or columns has neither fault: what a step of it changes is at most its
length, whatever comes in.

Source: Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon). torch's own, of torch 2.9 and later,
computes in bfloat16, which few CPUs do fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_FIRST, _THIRD, _FIFTH = 3.4445, -4.7750, 2.0315
"""Coefficients of the iteration, by Jordan; it ends between 0.7 and 1.2 rather than at 1, and soon."""

_ITERATIONS = 5
_MOMENTUM = 0.9


def orthogonal(matrix: Tensor) -> Tensor:
    """Nearly u v^T of a matrix u s v^T: all its directions, as long as each other.

    Args:
        matrix: (rows, columns); one of zeros stays as it is.
    """
    turned = matrix.shape[0] > matrix.shape[1]
    x: Tensor = matrix.mT if turned else matrix
    x = x / x.norm().clamp_min(torch.finfo(x.dtype).tiny)
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = _FIRST * x + (_THIRD * square + _FIFTH * square @ square) @ x
    return x.mT if turned else x


class Muon(torch.optim.Optimizer):
    """Moves matrices by the orthogonal part of their momentum (Nesterov's).

    Args:
        params: groups of (rows, columns) matrices; a step is `lr` long along each direction.
    """

    def __init__(self, params: Iterable[dict[str, Any]]) -> None:
        super().__init__(params, {"lr": 1e-3})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of all that have a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum"] = torch.zeros_like(matrix)
                momentum = state["momentum"].mul_(_MOMENTUM).add_(matrix.grad)
                way = orthogonal(matrix.grad.add(momentum, alpha=_MOMENTUM))
                matrix.add_(way, alpha=-group["lr"])
