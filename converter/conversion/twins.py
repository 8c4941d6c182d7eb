"""Layers that answer for two networks at once: as before for one half of a batch, replaced for the other.

A twin makes its replacement when images first reach it, from what the layer reads in both networks and what it gives
in the dense one; `sequential` says how.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..analysis.running import named
from ..lowrank.decomposition import Factors, decompose
from ..lowrank.forms import Form, matricise, matrix_size, rebuild
from ..lowrank.layers import LowRank, layout_of, low_rank
from ..lowrank.moments import LARGEST_MOMENT, PairMoments, pair_moments
from ..lowrank.refitting import refit_second
from ..lowrank.regression import RIDGES, best_ridge, nearest_map
from ..lowrank.shapes import LayerShape, Plain

_FEWEST_TO_SPLIT = 12
"""Images below which none is spared to choose a ridge by."""

_REFITTED, _SAMPLES = 32, 40
"""A layer that stays dense is fitted on so many images at least, and on so many samples for each of its inputs."""


class Twin(nn.Module):
    """A dense layer for the first half of a batch and its replacement for the second: (..., 2N, ...) -> same.

    Where the batch does not reach the layer, it stays the dense one for both halves.
    """

    def __init__(
        self,
        name: str,
        dense: Plain,
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
        self.made: LowRank | Plain | None = None
        self.shift: Tensor | None = None
        # Features lie on a dense layer's last axis, channels on a convolution's axis 1.
        self.axis = axis if axis == 0 or shape.linear else None
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

    def _fit(self, x: Tensor, z: Tensor, wanted: Tensor) -> LowRank | Plain:
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

    def _take_up_mean(self, made: LowRank | Plain, z: Tensor, wanted: Tensor) -> None:
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
        return self._shape.channel_axis(output.dim())

    def _along_channels(self, values: Tensor, output: Tensor) -> Tensor:
        sizes = [1] * output.dim()
        sizes[self._channels(output)] = -1
        return values.to(output.dtype).reshape(sizes)


class Cut(Twin):
    """A layer that becomes a low-rank one; where the batch does not reach it, that one is fitted to its weight."""

    made: LowRank | None

    def __init__(self, *of_twin: Any, form: Form | None, rank: int | None, metric: Tensor | None = None) -> None:
        super().__init__(*of_twin)
        assert form is not None
        assert rank is not None
        self._form = form
        self._rank = rank
        self._metric = metric

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
            factors = decompose(whole, self._rank, moments.ridged(self._ridge), self._metric)
            if not shape.linear:
                power = float(moments.second.diagonal(dim1=-2, dim2=-1).mean())
                judges = self._judges(len(z))
                weight, centred = self.dense.weight, self._centred
                factors = refit_second(factors, weight, shape, form, z, wanted, power, centred=centred, judges=judges)
            made = self._layer(factors)
        self._tell()
        return made

    def _layer(self, factors: Factors) -> LowRank:
        typed = Factors(*(part.to(self.dense.weight.dtype) for part in factors))
        return low_rank(self._shape, self._form, typed, self.dense.bias, layout_of(self.dense.weight)).eval()


class Refit(Twin):
    """A layer that stays dense, and takes the weight that makes up for the errors before it."""

    made: Plain | None

    def _unneeded(self, x: Tensor, z: Tensor) -> bool:
        return torch.equal(x, z)  # nothing before it has changed

    def _fit(self, x: Tensor, z: Tensor, wanted: Tensor) -> Plain:
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
        made.weight.copy_(rebuild(whole, self._shape, Form.CHANNEL).reshape(made.weight.shape))
        return made
