"""Sequential reconstruction: each layer makes up for the errors of those before it.

With x a layer's input in the dense network and z its input behind the layers converted so far, the full map is
fitted first, A = M (E[x z^T] + ridge I) (E[z z^T] + ridge I)^-1, and then cut to its rank in the metric of z; layers
that stay dense take A as it is. The ridge is the best one on a third of the images that the others did not see;
without data, or where nothing before has changed, A = M. Where the first factor sees a part of the window only, the
second is fitted once more, to the layer's whole output. Where a bias or a norm can take up the mean of the output,
the fit is to what varies around it.

Both networks run as one: the batch holds the images twice, every layer computes the dense answer for the first half
and its replacement's for the second, and makes its replacement when the images first reach it. One
forward pass converts the whole network, in the order in which it runs, across branches and residual joins.

Source: asymmetric reconstruction, Zhang et al. (2015), with the whitened cut of `decompose`.
"""

from __future__ import annotations

import copy
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
from ..analysis.surveying import survey
from ..errors import ConverterWarning, ModelError
from ..lowrank.decomposition import Factors, decompose
from ..lowrank.forms import Form, matricise, matrix_size
from ..lowrank.layers import LowRank, low_rank
from ..lowrank.moments import LARGEST_MOMENT, PairMoments, pair_moments
from ..lowrank.refitting import refit_second
from ..lowrank.regression import RIDGES, best_ridge, nearest_map
from ..lowrank.shapes import LayerShape
from ..planning.plan import Plan

_FEWEST_TO_SPLIT = 12
"""Images below which none is spared to choose a ridge by."""

_REFITTED, _SAMPLES = 64, 40
"""A layer that stays dense is fitted on so many images at least, and on so many samples for each of its inputs."""


class Reconstruction(NamedTuple):
    """What takes the place of a plan's layers.

    Attributes:
        layers: by name.
        shifts: (outputs,) by the name of a norm: what its input lacks in the mean, for want of a bias before it.
        refits: by name, what a layer that stays dense becomes to make up for those before it.
    """

    layers: dict[str, LowRank]
    shifts: dict[str, Tensor]
    refits: dict[str, nn.Conv2d | nn.Linear]


@torch.no_grad()
def reconstruct(
    model: nn.Module,
    plan: Plan,
    images: Tensor,
    *,
    ridge: float,
    refit: bool = True,
    on_layer: Callable[[str], None] | None = None,
) -> Reconstruction:
    """Makes the low-rank layers of a plan, each fitted behind those before it.

    Args:
        model: the dense network; untouched.
        plan: forms and ranks; already checked against the model.
        images: (N, ...) calibration inputs; as many are used as fit into memory at once, twice.
        ridge: of the metric in which ranks are cut, relative to the mean of a moment's diagonal.
        refit: whether layers that stay dense make up for those before them, too.
        on_layer: is told the name of each layer when it is made.

    Raises:
        ModelError: the model cannot take the images, a layer never ran or cannot be fitted; names it.
    """
    layers = survey(model, images[:1])
    images = images[: images_in_memory([layer.shape for layer in layers], len(images), networks=2)]
    images = torch.cat([images[start::3] for start in range(3)])  # the last third judges
    staying = {
        layer.name: layer.shape
        for layer in layers
        if refit
        and layer.plain
        and layer.name not in plan.factored
        and layer.shape is not None
        and len(layer.shape.calls) == 1
    }
    axes = batch_axes(model, [*plan.factored, *staying], images)
    norms = {pair.layer: pair.norm for pair in norm_pairs(model, [images[:2]])}
    walker = copied(model)
    by_name = dict(walker.named_modules(remove_duplicate=False))
    twins: dict[nn.Module, _Twin] = {}
    for name in (*plan.factored, *staying):
        dense = by_name[name]
        assert isinstance(dense, (nn.Conv2d, nn.Linear))
        wanted = plan.factored.get(name)
        shape = staying[name] if wanted is None else wanted.shape
        assert shape is not None
        where = (name, dense, shape, 2 * len(images), axes[name], name in norms, ridge, on_layer)
        twins[dense] = _Refit(*where) if wanted is None else _Cut(*where, form=wanted.form, rank=wanted.rank)
    for name, module in by_name.items():
        if module in twins:
            parent, _, child = name.rpartition(".")
            setattr(by_name[parent], child, twins[module])
    with evaluating(walker):
        run(walker, torch.cat([images, images]))
    made = Reconstruction({}, {}, {})
    for twin in twins.values():
        if twin.shift is not None:
            made.shifts[norms[twin.name]] = twin.shift
        if isinstance(twin.made, LowRank):
            made.layers[twin.name] = twin.made
        elif twin.made is not None:
            made.refits[twin.name] = twin.made
        elif twin.name in plan.factored:
            raise ModelError(f"{twin.name}: did not run on the calibration images; keep it dense")
    alone = [twin.name for twin in twins.values() if twin.axis is None and twin.name in plan.factored]
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

    Where the batch does not reach the layer, it stays the dense one for both halves.
    """

    def __init__(
        self,
        name: str,
        dense: nn.Conv2d | nn.Linear,
        shape: LayerShape,
        batch: int,
        axis: int | None,
        normed: bool,
        ridge: float,
        on_layer: Callable[[str], None] | None,
    ) -> None:
        super().__init__()
        self.name = name
        self.dense = dense
        self.made: LowRank | nn.Conv2d | nn.Linear | None = None
        self.shift: Tensor | None = None
        # Features lie on a dense layer's last axis, channels on a convolution's axis 1.
        inner = isinstance(dense, nn.Conv2d)
        self.axis = axis if axis == 0 or not inner else None
        self._shape = shape
        self._batch = batch
        self._centred = normed or dense.bias is not None
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
        if self.axis is not None and self.made is None and self._unneeded(*input.chunk(2, self.axis)):
            self.axis = None
        if self.axis is None:
            self._alone()
            return self.dense(input)  # type: ignore[no-any-return]
        x, z = input.chunk(2, self.axis)
        wanted = self.dense(x)
        if self.made is None:
            with named(self.name, "fitting it"), torch.autocast(z.device.type, enabled=False):
                self.made = self._fit(x, z, wanted)
                self._take_up_mean(self.made, z, wanted)
        answer = self.made(z).to(wanted.dtype)
        if self.shift is not None:
            answer = answer + self._along_channels(self.shift, answer)
        return torch.cat([wanted, answer], self.axis)

    def _unneeded(self, x: Tensor, z: Tensor) -> bool:
        """Whether the dense layer may stay as it is."""
        return False

    def _alone(self) -> None:
        """Makes the replacement without images, if there is to be one."""

    def _fit(self, x: Tensor, z: Tensor, wanted: Tensor) -> LowRank | nn.Conv2d | nn.Linear:
        raise NotImplementedError

    def _tell(self) -> None:
        if self._on_layer is not None:
            self._on_layer(self.name)

    def _nearest_map(self, x: Tensor, z: Tensor, form: Form) -> tuple[Tensor, PairMoments]:
        """The full map from z in a form, and the moments that it was found in."""
        assert self.axis is not None
        axis = self.axis
        matrix = matricise(self.dense.weight, self._shape, form).double()
        count = z.shape[axis]
        judges = self._judges(count)

        def seen(start: int, length: int) -> PairMoments:
            there = (axis, start, length)
            return pair_moments(x.narrow(*there), z.narrow(*there), self._shape, form)

        moments, ridge = seen(0, count - judges), RIDGES[0]
        if judges:
            fitted, others = self._centre(moments), seen(count - judges, judges)
            judged = self._centre(others)
            ridge = best_ridge(lambda ridge: nearest_map(matrix, fitted, ridge), matrix @ judged.cross, judged.second)
            moments = moments.pooled(others, judges / count)
        moments = self._centre(moments)
        return nearest_map(matrix, moments, ridge), moments

    def _judges(self, count: int) -> int:
        """Of so many images' blocks along the axis, those at the end that judge a fit."""
        return count // 3 if self._batch // 2 >= _FEWEST_TO_SPLIT else 0

    def _centre(self, moments: PairMoments) -> PairMoments:
        return moments.centred() if self._centred else moments

    def _take_up_mean(self, made: LowRank | nn.Conv2d | nn.Linear, z: Tensor, wanted: Tensor) -> None:
        if not self._centred:
            return
        weight = next(made.parameters())
        lacking = wanted.float() - made(z.to(weight.dtype)).float()
        channels = self._channels(lacking)
        mean = lacking.mean([axis for axis in range(lacking.dim()) if axis != channels])
        if made.bias is not None:
            made.bias.add_(mean.to(made.bias.dtype))
        else:
            self.shift = mean

    def _channels(self, output: Tensor) -> int:
        return 1 if isinstance(self.dense, nn.Conv2d) else output.dim() - 1

    def _along_channels(self, values: Tensor, output: Tensor) -> Tensor:
        sizes = [1] * output.dim()
        sizes[self._channels(output)] = -1
        return values.to(output.dtype).reshape(sizes)


class _Cut(_Twin):
    """A layer that becomes a low-rank one; where the batch does not reach it, that one is fitted to its weight."""

    made: LowRank | None

    def __init__(self, *of_twin: Any, form: Form | None, rank: int | None) -> None:
        super().__init__(*of_twin)
        assert form is not None
        assert rank is not None
        self._form = form
        self._rank = rank

    def _alone(self) -> None:
        if self.made is None:
            with named(self.name, "its decomposition"):
                self.made = self._plain_cut()
            self._tell()

    def _plain_cut(self) -> LowRank:
        return self._layer(decompose(matricise(self.dense.weight, self._shape, self._form).double(), self._rank))

    def _fit(self, x: Tensor, z: Tensor, wanted: Tensor) -> LowRank:
        shape, form = self._shape, self._form
        if matrix_size(shape, form)[1] > LARGEST_MOMENT:
            made = self._plain_cut()
        else:
            whole, moments = self._nearest_map(x, z, form)
            factors = decompose(whole, self._rank, moments.ridged(self._ridge))
            if shape.kind == "conv2d":
                power = float(moments.second.diagonal(dim1=-2, dim2=-1).mean())
                judges = self._judges(len(z))
                weight, centred = self.dense.weight, self._centred
                factors = refit_second(factors, weight, shape, form, z, wanted, power, centred=centred, judges=judges)
            made = self._layer(factors)
        self._tell()
        return made

    def _layer(self, factors: Factors) -> LowRank:
        typed = Factors(*(part.to(self.dense.weight.dtype) for part in factors))
        return low_rank(self._shape, self._form, typed, self.dense.bias).eval()


class _Refit(_Twin):
    """A layer that stays dense, and takes the weight that makes up for the errors before it."""

    made: nn.Conv2d | nn.Linear | None

    def _unneeded(self, x: Tensor, z: Tensor) -> bool:
        return torch.equal(x, z)  # nothing before it has changed

    def _fit(self, x: Tensor, z: Tensor, wanted: Tensor) -> nn.Conv2d | nn.Linear:
        columns = matrix_size(self._shape, Form.CHANNEL)[1]
        if columns > LARGEST_MOMENT:
            return copy.deepcopy(self.dense)
        assert self.axis is not None
        samples = wanted[:1].numel() // self._shape.outputs if self.axis == 0 else 1
        enough = max(_REFITTED, _SAMPLES * columns // max(1, samples))
        every = max(1, x.shape[self.axis] // enough)
        if every > 1:
            some = torch.arange(0, x.shape[self.axis], every, device=x.device)
            x, z = x.index_select(self.axis, some), z.index_select(self.axis, some)
        whole, _ = self._nearest_map(x, z, Form.CHANNEL)
        made = copy.deepcopy(self.dense)
        made.weight.copy_(whole.reshape(made.weight.shape))
        return made
