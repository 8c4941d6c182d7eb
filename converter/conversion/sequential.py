"""Sequential reconstruction: each layer makes up for the errors of those before it.

With x a layer's input in the dense network and z its input behind the layers converted so far, the full map is
fitted first, A = M (E[x z^T] + ridge I) (E[z z^T] + ridge I)^-1, and then cut to its rank in the metric of z. Without
data, or where nothing before has changed, A = M. Where the first factor sees a part of the window only, the second is
fitted once more, to the layer's whole output. Where a bias or a norm can take up the mean of the output, the fit is
to what varies around it.

Both networks run as one: the batch holds the images twice, every layer to be replaced computes the dense answer for
the first half and the replacement's for the second, and makes its replacement when the images first reach it. One
forward pass converts the whole network, in the order in which it runs, across branches and residual joins.

Source: asymmetric reconstruction, Zhang et al. (2015), with the whitened cut of `decompose`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..analysis.batch_axis import batch_axes
from ..analysis.memory import images_in_memory
from ..analysis.norm_pairs import norm_pairs
from ..analysis.probe import evaluating
from ..analysis.running import copied, named, run
from ..errors import ConverterWarning, ModelError
from ..lowrank.decomposition import Factors, decompose
from ..lowrank.forms import matricise, matrix_size
from ..lowrank.layers import LowRank, low_rank
from ..lowrank.moments import LARGEST_MOMENT, PairMoments, pair_moments
from ..lowrank.refitting import refit_second
from ..planning.plan import LayerPlan, Plan


class Reconstruction(NamedTuple):
    """What takes the place of a plan's layers.

    Attributes:
        layers: by name.
        shifts: (outputs,) by the name of a norm: what its input lacks in the mean, for want of a bias before it.
    """

    layers: dict[str, LowRank]
    shifts: dict[str, Tensor]


@torch.no_grad()
def reconstruct(
    model: nn.Module,
    plan: Plan,
    images: Tensor,
    *,
    ridge: float,
    on_layer: Callable[[str], None] | None = None,
) -> Reconstruction:
    """Makes the low-rank layers of a plan, each fitted behind those before it.

    Args:
        model: the dense network; untouched.
        plan: forms and ranks; already checked against the model.
        images: (N, ...) calibration inputs; as many are used as fit into memory at once, twice.
        ridge: relative to the mean of a moment's diagonal.
        on_layer: is told the name of each layer when it is made.

    Raises:
        ModelError: the model cannot take the images, a layer never ran or cannot be fitted; names it.
    """
    images = images[: images_in_memory([layer.shape for layer in plan], len(images), networks=2)]
    axes = batch_axes(model, plan.factored, images)
    norms = {pair.layer: pair.norm for pair in norm_pairs(model, [images[:2]])}
    walker = copied(model)
    by_name = dict(walker.named_modules(remove_duplicate=False))
    twins: dict[nn.Module, _Twin] = {}
    for name, wanted in plan.factored.items():
        dense = by_name[name]
        assert isinstance(dense, (nn.Conv2d, nn.Linear))
        twins[dense] = _Twin(name, dense, wanted, 2 * len(images), axes[name], name in norms, ridge, on_layer)
    for name, module in by_name.items():
        if module in twins:
            parent, _, child = name.rpartition(".")
            setattr(by_name[parent], child, twins[module])
    with evaluating(walker):
        run(walker, torch.cat([images, images]))
    made = Reconstruction({}, {})
    for twin in twins.values():
        if twin.made is None:
            raise ModelError(f"{twin.name}: did not run on the calibration images; keep it dense")
        made.layers[twin.name] = twin.made
        if twin.shift is not None:
            made.shifts[norms[twin.name]] = twin.shift
    alone = [twin.name for twin in twins.values() if twin.axis is None]
    if alone:
        warnings.warn(
            f"{', '.join(alone)}: fitted to the weights alone, as the input does not carry the calibration images "
            "one beside the other",
            ConverterWarning,
            stacklevel=3,
        )
    return made


class _Twin(nn.Module):
    """A dense layer for the first half of a batch and its replacement for the second: (..., 2N, ...) -> same.

    Where the batch does not reach the layer, it stays the dense one for both halves, and the replacement is fitted to
    its weight.
    """

    def __init__(
        self,
        name: str,
        dense: nn.Conv2d | nn.Linear,
        wanted: LayerPlan,
        batch: int,
        axis: int | None,
        normed: bool,
        ridge: float,
        on_layer: Callable[[str], None] | None,
    ) -> None:
        super().__init__()
        self.name = name
        self.dense = dense
        self.made: LowRank | None = None
        self.shift: Tensor | None = None
        # Features lie on a dense layer's last axis, channels on a convolution's axis 1.
        inner = isinstance(dense, nn.Conv2d)
        self.axis = axis if axis == 0 or not inner else None
        self._wanted = wanted
        self._batch = batch
        self._normed = normed
        self._ridge = ridge
        self._on_layer = on_layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # for models that look at the layer's weight or sizes
            return getattr(super().__getattr__("dense"), name)

    def forward(self, input: Tensor) -> Tensor:
        if self.axis is not None and (input.dim() <= self.axis or input.shape[self.axis] % self._batch):
            self.axis = None
        if self.axis is None:
            if self.made is None:
                with named(self.name, "its decomposition"):
                    self.made = self._cut()
                self._tell()
            return self.dense(input)  # type: ignore[no-any-return]
        x, z = input.chunk(2, self.axis)
        wanted = self.dense(x)
        if self.made is None:
            with named(self.name, "fitting it"), torch.autocast(z.device.type, enabled=False):
                self.made = self._fit(x, z, wanted)
            self._tell()
        answer = self.made(z).to(wanted.dtype)
        if self.shift is not None:
            answer = answer + self._along_channels(self.shift, answer)
        return torch.cat([wanted, answer], self.axis)

    def _tell(self) -> None:
        if self._on_layer is not None:
            self._on_layer(self.name)

    def _cut(self) -> LowRank:
        shape, form, rank = self._wanted.shape, self._wanted.form, self._wanted.rank
        assert shape is not None
        assert form is not None
        assert rank is not None
        factors = decompose(matricise(self.dense.weight, shape, form).double(), rank)
        typed = Factors(*(part.to(self.dense.weight.dtype) for part in factors))
        return low_rank(shape, form, typed, self.dense.bias).eval()

    def _fit(self, x: Tensor, z: Tensor, wanted: Tensor) -> LowRank:
        shape, form, rank = self._wanted.shape, self._wanted.form, self._wanted.rank
        assert shape is not None
        assert form is not None
        assert rank is not None
        if matrix_size(shape, form)[1] > LARGEST_MOMENT:
            made = self._cut()
        else:
            centred = self._normed or self.dense.bias is not None
            moments = pair_moments(x, z, shape, form)
            moments = moments.centred() if centred else moments
            matrix = matricise(self.dense.weight, shape, form).double()
            factors = fitted(matrix, rank, moments, self._ridge)
            if shape.kind == "conv2d":
                noise = self._ridge * float(moments.second.diagonal(dim1=-2, dim2=-1).mean())
                weight = self.dense.weight
                factors = refit_second(factors, weight, shape, form, z, wanted, noise, centred=centred)
            typed = Factors(*(part.to(self.dense.weight.dtype) for part in factors))
            made = low_rank(shape, form, typed, self.dense.bias).eval()
        lacking = wanted.float() - made(z.to(made.u.dtype)).float()
        channels = self._channels(lacking)
        mean = lacking.mean([axis for axis in range(lacking.dim()) if axis != channels])
        if made.bias is not None:
            made.bias.add_(mean.to(made.bias.dtype))
        elif self._normed:
            self.shift = mean
        return made

    def _channels(self, output: Tensor) -> int:
        return 1 if isinstance(self.dense, nn.Conv2d) else output.dim() - 1

    def _along_channels(self, values: Tensor, output: Tensor) -> Tensor:
        sizes = [1] * output.dim()
        sizes[self._channels(output)] = -1
        return values.to(output.dtype).reshape(sizes)


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
    second = moments.ridged(ridge)
    cross = moments.cross + (second - moments.second)
    root = torch.linalg.cholesky(second)
    whole = matrix @ torch.cholesky_solve(cross.mT, root).mT
    return decompose(whole, rank, second)
