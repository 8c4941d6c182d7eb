"""Steps of a matrix that are as long along each of its directions.

A factor's gradient has a few strong directions and many weak ones, and small changes of many values add up where they
agree. The nearest matrix with orthonormal rows or columns has neither fault: what a step of it changes is at most its
length, whatever comes in.

Source: Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon). torch's own, of torch 2.9 and later,
computes in bfloat16, which few CPUs do fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from .attached import low_rank_layers

_FIRST, _THIRD, _FIFTH = 3.4445, -4.7750, 2.0315
"""Coefficients of the iteration, by Jordan; it ends between 0.7 and 1.2 rather than at 1, and soon."""

_ITERATIONS = 5
_MOMENTUM = 0.9


def orthogonal(matrix: Tensor) -> Tensor:
    """Nearly u v^T of a matrix u s v^T: all its directions, as long as each other.

    Each x = p(x x^T) x of the iteration is a polynomial of the first square times the first x. So squares alone are
    iterated, which are the smaller, the longer the matrix is.

    Args:
        matrix: (rows, columns); one of zeros stays as it is.
    """
    turned = matrix.shape[0] > matrix.shape[1]
    x: Tensor = matrix.mT if turned else matrix
    x = x / x.norm().clamp_min(torch.finfo(x.dtype).tiny)
    square = x @ x.mT
    whole = torch.eye(len(square), dtype=x.dtype, device=x.device)
    for _ in range(_ITERATIONS):
        step = _THIRD * square + _FIFTH * square @ square
        step.diagonal().add_(_FIRST)
        whole, square = step @ whole, step @ square @ step
    x = whole @ x
    return x.mT if turned else x


class Muon(torch.optim.SGD):
    """Moves matrices by the orthogonal part of their momentum (Nesterov's), and all else as SGD does.

    Args:
        matrices: groups of (rows, columns) matrices; a step is `lr` long along each direction.
        others: groups as SGD takes them.
    """

    def __init__(self, matrices: Iterable[dict[str, Any]], others: Iterable[dict[str, Any]] = ()) -> None:
        of_matrices = [{**group, "orthogonal": True, "momentum": 0.0} for group in matrices]
        super().__init__([*of_matrices, *({**group, "orthogonal": False} for group in others)])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of all that have a gradient; those of matrices are not gradients any more afterwards."""
        for group in self.param_groups:
            for matrix in group["params"] if group["orthogonal"] else ():
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                momentum = state["momentum_buffer"].mul_(_MOMENTUM).add_(matrix.grad)
                matrix.grad = orthogonal(matrix.grad.add(momentum, alpha=_MOMENTUM))
        return cast("float | None", super().step(closure))


def matrices_apart(
    model: nn.Module, parameters: Iterable[nn.Parameter]
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Factors that are matrices, those of layers without groups, and all else.

    Args:
        model: with low-rank layers.
        parameters: of it.
    """
    factors = {id(factor) for layer in low_rank_layers(model).values() for factor in (layer.u, layer.v)}
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for one in parameters:
        (matrices if id(one) in factors and one.dim() == 2 else others).append(one)
    return matrices, others
