"""Sequential reconstruction: each layer makes up for the errors of those before it.

With x a layer's input in the dense network and z its input behind the layers converted so far, the full map is
fitted first, A = M (E[x z^T] + ridge I) (E[z z^T] + ridge I)^-1, and then cut to its rank in the metric of z. Without
data, or where nothing before has changed, A = M.

Both networks run as one: the batch holds the images twice, every layer to be replaced computes the dense answer for
the first half and the replacement's for the second, and makes its replacement when the images first reach it. One
forward pass converts the whole network, in the order in which it runs, across branches and residual joins.

Source: asymmetric reconstruction, Zhang et al. (2015), with the whitened cut of `decompose`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .decompose import Factors, decompose, regularised
from .errors import ModelError
from .forms import matricise, matrix_size
from .layers import LowRank, low_rank
from .memory import images_in_memory
from .moments import PairMoments, pair_moments
from .plan import LayerPlan, Plan
from .probe import evaluating

LARGEST_MOMENT = 6144
"""Columns of the largest moment made: a float64 matrix of 300 MB. Larger layers are cut without data."""


@torch.no_grad()
def reconstruct(
    model: nn.Module,
    plan: Plan,
    images: Tensor,
    *,
    ridge: float,
    on_layer: Callable[[str], None] | None = None,
) -> dict[str, LowRank]:
    """Makes the low-rank layers of a plan, each fitted behind those before it.

    Args:
        model: the dense network; untouched.
        plan: forms and ranks; already checked against the model.
        images: (N, ...) calibration inputs; as many are used as fit into memory at once, twice.
        ridge: relative to the mean of a moment's diagonal.
        on_layer: is told the name of each layer when it is made.

    Returns:
        The layers by name.

    Raises:
        ModelError: a layer mixes the images of a batch or never ran.
    """
    images = images[: images_in_memory([layer.shape for layer in plan], len(images), networks=2)]
    walker = copy.deepcopy(model)
    by_name = dict(walker.named_modules(remove_duplicate=False))
    twins: dict[str, _Twin] = {}
    for name, wanted in plan.factored.items():
        dense = by_name[name]
        assert isinstance(dense, (nn.Conv2d, nn.Linear))
        twins[name] = _Twin(name, dense, wanted, 2 * len(images), ridge, on_layer)
    for name, module in by_name.items():
        twin = next((twin for twin in twins.values() if twin.dense is module), None)
        if twin is not None:
            parent, _, child = name.rpartition(".")
            setattr(by_name[parent], child, twin)
    with evaluating(walker):
        walker(torch.cat([images, images]))
    made = {}
    for name, twin in twins.items():
        if twin.made is None:
            raise ModelError(f"{name}: did not run on the calibration images; keep it dense")
        made[name] = twin.made
    return made


class _Twin(nn.Module):
    """A dense layer for the first half of a batch and its replacement for the second: (2N, ...) -> (2N, ...)."""

    def __init__(
        self,
        name: str,
        dense: nn.Conv2d | nn.Linear,
        wanted: LayerPlan,
        batch: int,
        ridge: float,
        on_layer: Callable[[str], None] | None,
    ) -> None:
        super().__init__()
        self.name = name
        self.dense = dense
        self.made: LowRank | None = None
        self._wanted = wanted
        self._batch = batch
        self._ridge = ridge
        self._on_layer = on_layer

    @property
    def weight(self) -> Tensor:
        """For models that look at it."""
        return self.dense.weight

    def forward(self, both: Tensor) -> Tensor:
        if both.shape[0] % self._batch:
            raise ModelError(
                f"{self.name}: its input {tuple(both.shape)} does not have the images in front, so it cannot be "
                "fitted in sequence; convert without calibration"
            )
        x, z = both.chunk(2)
        wanted = self.dense(x)
        if self.made is None:
            self.made = self._fit(x, z, wanted)
            if self._on_layer is not None:
                self._on_layer(self.name)
        return torch.cat([wanted, self.made(z)])

    def _fit(self, x: Tensor, z: Tensor, wanted: Tensor) -> LowRank:
        shape, form, rank = self._wanted.shape, self._wanted.form, self._wanted.rank
        assert shape is not None
        assert form is not None
        assert rank is not None
        matrix = matricise(self.dense.weight, shape, form).double()
        if matrix_size(shape, form)[1] > LARGEST_MOMENT:
            factors = decompose(matrix, rank)
        else:
            moments = pair_moments(x, z, shape, form)
            factors = fitted(matrix, rank, moments, self._ridge)
        made = low_rank(
            shape, form, Factors(*(part.to(self.dense.weight.dtype) for part in factors)), self.dense.bias
        ).eval()
        if made.bias is not None:
            axes = [
                axis for axis in range(wanted.dim()) if axis != (1 if shape.kind == "conv2d" else wanted.dim() - 1)
            ]
            made.bias.add_((wanted - made(z)).float().mean(axes).to(made.bias.dtype))
        return made


def fitted(matrix: Tensor, rank: int, moments: PairMoments, ridge: float) -> Factors:
    """The rank-r map from z that comes nearest to M x.

    Args:
        matrix: M (..., m, n), float64.
        rank: 1 <= rank <= min(m, n).
        moments: of x and z.
        ridge: relative; the same amount is added to both moments, so that without data the fit is M itself.

    Returns:
        Factors in float64.
    """
    second = regularised(moments.second, ridge)
    cross = moments.cross + (second - moments.second)
    root = torch.linalg.cholesky(second)
    whole = matrix @ torch.cholesky_solve(cross.mT, root).mT
    return decompose(whole, rank, second)
