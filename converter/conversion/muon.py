"""Steps of a matrix that are as long along each of its directions.

A factor's gradient has a few strong directions and many weak ones, and small changes of many values add up where they
agree. The nearest matrix with orthonormal rows or columns has neither fault: what a step of it changes is at most its
length, whatever comes in.

Source: Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon). torch's own, of torch 2.9 and later,
computes in bfloat16, which few CPUs do fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from .attached import low_rank_layers

_FIRST, _THIRD, _FIFTH = 3.4445, -4.7750, 2.0315
"""Coefficients of the iteration, by Jordan; it ends between 0.7 and 1.2 rather than at 1, and soon."""

_ITERATIONS = 5
_MOMENTUM = 0.9


def orthogonal(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Of each matrix u s v^T nearly u v^T: all its directions, as long as each other.

    Each x = p(x x^T) x of the iteration is a polynomial of the first square times the first x. So squares alone are
    iterated, which are the smaller, the longer a matrix is, and all of one size together.

    Args:
        matrices: (rows, columns) each; one of zeros stays as it is.
    """
    wide = [matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix for matrix in matrices]
    wide = [matrix / matrix.norm().clamp_min(torch.finfo(matrix.dtype).tiny) for matrix in wide]
    alike: dict[tuple[int, torch.dtype, torch.device], list[int]] = {}
    for place, matrix in enumerate(wide):
        alike.setdefault((len(matrix), matrix.dtype, matrix.device), []).append(place)
    for places in alike.values():
        wholes = _polynomial(torch.stack([wide[place] @ wide[place].mT for place in places]))
        for place, whole in zip(places, wholes, strict=True):
            wide[place] = whole @ wide[place]
    return [x.mT if x.shape != matrix.shape else x for x, matrix in zip(wide, matrices, strict=True)]


def _polynomial(squares: Tensor) -> Tensor:
    """What the iteration multiplies matrices by, of which these are the squares, (number, rows, rows)."""
    whole = step = _step(squares)
    for _ in range(1, _ITERATIONS):
        squares = step @ squares @ step
        step = _step(squares)
        whole = step @ whole
    return whole


def _step(squares: Tensor) -> Tensor:
    """p of the squares."""
    step = torch.baddbmm(squares, squares, squares, beta=_THIRD, alpha=_FIFTH)
    step.diagonal(dim1=-2, dim2=-1).add_(_FIRST)
    return step


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
        groups = [group["params"] for group in self.param_groups if group["orthogonal"]]
        matrices = [matrix for group in groups for matrix in group if matrix.grad is not None]
        if matrices:
            for matrix, way in zip(matrices, orthogonal(self._with_momentum(matrices)), strict=True):
                matrix.grad = way
        return cast("float | None", super().step(closure))

    def _with_momentum(self, matrices: Sequence[Tensor]) -> Sequence[Tensor]:
        """Nesterov's momentum of each, with its gradient in it."""
        gradients = [cast("Tensor", matrix.grad) for matrix in matrices]
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        momenta = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        torch._foreach_mul_(momenta, _MOMENTUM)
        torch._foreach_add_(momenta, gradients)
        return torch._foreach_add(gradients, momenta, alpha=_MOMENTUM)


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
