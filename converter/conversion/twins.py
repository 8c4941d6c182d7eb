"""Layers that answer for two networks at once: as before for one half of a batch, replaced for the other.

A twin makes its replacement when images first reach it, from what the layer reads in both networks and what it gives
in the dense one; `sequential` says how. The images come in batches that walk in step, and meet in each twin: each
brings its moments, and the last one makes the replacement of them all. Where not all of them may wait before a layer,
it learns from some of them.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..analysis.running import named
from ..lowrank.decomposition import Factors, decompose
from ..lowrank.forms import Form, matricise, matrix_size, rebuild
from ..lowrank.layers import LowRank, layout_of, low_rank
from ..lowrank.moments import LARGEST_MOMENT, PairMoments, answer_moments, pair_moments
from ..lowrank.patches import Summed, mean_patch, summed
from ..lowrank.refitting import refit_second, second_moments
from ..lowrank.regression import Part, PartOrNone, Split, fit_on, nearest_map
from ..lowrank.shapes import LayerShape, Plain
from ..lowrank.sweeping import sweepable, swept
from .walking import Walk
from .weighing import image_weights, power
from .windows import TO_REFIT, Enough, apart, thinned, to_cut


class Seen(NamedTuple):
    """What a batch, or some of it, brings to a layer.

    Attributes:
        x: what the dense layer reads.
        y: what it gives for that.
        z: what the replacement reads.
        weights: how much each image counts, (N,), or each row of a dense layer, of z's shape but for the last axis.
    """

    x: Tensor
    y: Tensor
    z: Tensor
    weights: Tensor


class Twin(nn.Module):
    """A dense layer for the first half of a batch and its replacement for the second: (..., 2N, ...) -> same.

    Where the batch does not reach the layer, it stays the dense one for both halves.
    """

    def __init__(
        self,
        name: str,
        dense: Plain,
        shape: LayerShape,
        walk: Walk,
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
        self._walk = walk
        self._learning = walk.learning(shape)
        self._centred = normed or dense.bias is not None
        self._ridge = ridge
        self._on_layer = on_layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # for models that look at the layer's weight or sizes
            return getattr(super().__getattr__("dense"), name)

    def forward(self, input: Tensor) -> Tensor:
        if self.made is None and self.axis is not None:
            self._walk.arrive(self._learning)
            whole = self._is_whole(input)
            self.axis = self._meet("its input", (whole, whole and self._has_changed(input)), self._agreed)
        elif self.axis is not None and not self._is_whole(input):
            self.axis = None
        if self.axis is None:
            self._alone()
            return self.dense(input)  # type: ignore[no-any-return]
        x, z = input.chunk(2, self.axis)
        wanted = self.dense(x)
        if self.made is None:
            with named(self.name, "fitting it"), torch.autocast(z.device.type, enabled=False):
                made = self._fit(Seen(x, wanted, z, self._weights(wanted)))
                if self._centred:
                    self._take_up_mean(made, x, z)
                self.made = made
        answer = self.made(z).to(wanted.dtype)
        if self.shift is not None:
            answer = answer + self._along_channels(self.shift, answer)
        return torch.cat([wanted, answer], self.axis)

    @property
    def _columns(self) -> int:
        """Values of a whole window."""
        return matrix_size(self._shape, Form.CHANNEL)[1]

    @property
    def _images(self) -> int:
        """That it learns from."""
        return sum(self._walk.batches[place].images for place in self._learning)

    def _is_whole(self, input: Tensor) -> bool:
        """Whether an input has a block for each image along the axis, twice."""
        assert self.axis is not None
        return input.dim() > self.axis and input.shape[self.axis] % (2 * self._walk.here.images) == 0

    def _has_changed(self, input: Tensor) -> bool:
        """Whether there is something to make up for."""
        return True

    def _agreed(self, inputs: list[tuple[bool, bool]]) -> int | None:
        """The axis, if all batches lie along it, and one of them has something to learn from."""
        return self.axis if all(whole for whole, _ in inputs) and any(changed for _, changed in inputs) else None

    def _meet(self, where: str, value: Any, combine: Callable[[list[Any]], Any]) -> Any:
        return self._walk.step.meet((self.name, where), value, combine, members=self._learning)

    def _pool(self, where: str, part: PartOrNone, combine: Callable[[list[Part]], Any]) -> Any:
        """Meets with moments, which are pooled as they come: those of one batch take up to 300 MB."""
        return self._walk.step.meet((self.name, where), part, combine, Split.gather, self._learning)

    def _weights(self, wanted: Tensor) -> Tensor:
        """How much each image counts, as `Seen` has it, by what the dense layer gives."""
        assert self.axis is not None
        images, linear = self._walk.here.images, self._shape.linear
        found = self._meet("its answers", power(wanted, self.axis, images, linear), image_weights)
        counted: Tensor = found[self._learning.index(self._walk.step.place)]
        counted = counted.repeat_interleave(wanted.shape[self.axis] // images)
        if not linear:
            return counted
        sizes = [1] * (wanted.dim() - 1)
        sizes[self.axis] = -1
        return counted.reshape(sizes).expand(wanted.shape[:-1])

    def _alone(self) -> None:
        """Makes the replacement without images, if there is to be one."""

    def _fit(self, seen: Seen) -> LowRank | Plain:
        """The replacement, but for the mean; the same one for all batches."""
        raise NotImplementedError

    def _tell(self) -> None:
        if self._on_layer is not None:
            self._on_layer(self.name)

    def _nearest_map(self, parts: list[Part], form: Form) -> tuple[Tensor, PairMoments]:
        """The full map from z in a form, and the moments that it was found in."""
        matrix = matricise(self.dense.weight, self._shape, form).double()
        if form is not Form.CHANNEL:
            parts = [(moments.through(matrix), count, judges) for moments, count, judges in parts]
        return fit_on(Split.of(parts), matrix, nearest_map, centred=self._centred)

    def _thinned(self, seen: Seen, enough: Enough) -> Seen:
        """So much of a batch as has to be seen of whole windows."""
        assert self.axis is not None
        places = seen.y[:1].numel() // self._shape.outputs if self.axis == 0 else 1
        wanted = enough.wanted(self._columns, places, self._shape.groups)
        return Seen(*thinned(seen, self.axis, self._walk.here, self._images, wanted))

    def _moments(self, seen: Seen, form: Form = Form.CHANNEL, distance: int = 1) -> PartOrNone:
        """Of x and z in a form, if there are some; of y instead of x where windows are whole; so far apart."""
        assert self.axis is not None
        x, y, z, weights = seen
        shape, judges, counted = self._shape, self._walk.here.judges, float(weights.double().sum())
        if distance > 1:
            every: Any = (..., *[slice(None, None, distance)] * len(shape.kernel))
            shape, y = shape.sparser(distance), y[every]
        if z.shape[self.axis] == 0:
            return None, 0.0, judges
        if form is Form.CHANNEL and shape.outputs // shape.groups < self._columns:
            return answer_moments(y, z, shape, weights), counted, judges
        moments = pair_moments(x, z, shape, form, weights)
        if form is Form.CHANNEL:  # wide answers would take longer
            moments = moments.through(matricise(self.dense.weight, shape, form).double())
        return moments, counted, judges

    def _take_up_mean(self, made: LowRank | Plain, x: Tensor, z: Tensor) -> None:
        part = (summed(x, self._shape), summed(z, self._shape))
        self._meet("its mean", part, lambda parts: self._shift_by(made, *zip(*parts, strict=True)))

    def _shift_by(self, made: LowRank | Plain, x: Sequence[Summed], z: Sequence[Summed]) -> None:
        """Has a replacement's outputs lie around the mean of the dense layer's."""
        lacking = self._mean_output(self.dense, x) - self._mean_output(made, z)
        if made.bias is not None:
            made.bias.add_(lacking.to(made.bias.dtype))
        else:
            self.shift = lacking.float()

    def _mean_output(self, layer: LowRank | Plain, inputs: Sequence[Summed]) -> Tensor:
        """(outputs,) float64, less the bias."""
        mean = mean_patch(inputs, self._shape)
        matrix = matricise(layer.weight, self._shape, Form.CHANNEL).double().reshape(len(mean), -1, mean.shape[-1])
        return (matrix @ mean.unsqueeze(-1)).flatten()

    def _along_channels(self, values: Tensor, output: Tensor) -> Tensor:
        sizes = [1] * output.dim()
        sizes[self._shape.channel_axis(output.dim())] = -1
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
                self.made = self._layer(self._plain_cut())
            self._tell()

    def _plain_cut(self) -> Factors:
        return decompose(matricise(self.dense.weight, self._shape, self._form).double(), self._rank)

    def _fit(self, seen: Seen) -> LowRank:
        shape, form = self._shape, self._form
        if matrix_size(shape, form)[1] > LARGEST_MOMENT:
            return self._meet("its weight", None, lambda _: self._told(self._plain_cut()))  # type: ignore[no-any-return]
        if sweepable(shape, form):
            seen = self._thinned(seen, to_cut(self._walk.images))
        begun = factors = self._pool("its first factor", self._moments(seen, form), self._first)
        if sweepable(shape, form):
            factors = self._pool("its whole windows", self._moments(seen), functools.partial(self._swept, begun))
        between = self._between(factors, seen, done=factors is not begun)
        made: LowRank = self._pool("its second factor", between, functools.partial(self._second, factors))
        return made

    def _first(self, parts: list[Part]) -> Factors:
        """Those of the full map."""
        whole, moments = self._nearest_map(parts, self._form)
        return decompose(whole, self._rank, moments.ridged(self._ridge), self._metric)

    def _swept(self, factors: Factors, parts: list[Part]) -> Factors:
        """Both factors in turn from there."""
        split, weight, metric = Split.of(parts), self.dense.weight, self._metric
        return swept(factors, weight, self._shape, self._form, split, centred=self._centred, metric=metric)

    def _between(self, factors: Factors, seen: Seen, done: bool) -> PartOrNone:
        """Moments of what the layer gives and of what the second factor reads, where that is left to be fitted."""
        shape, form, judges = self._shape, self._form, self._walk.here.judges
        if done or shape.linear or form is Form.CHANNEL or not len(seen.z):
            return None, 0.0, judges
        counted = float(seen.weights.double().sum())
        return second_moments(factors, shape, form, seen.z, seen.y, seen.weights), counted, judges

    def _second(self, factors: Factors, parts: list[Part]) -> LowRank:
        if parts:
            factors = refit_second(factors, self._shape, self._form, Split.of(parts), centred=self._centred)
        return self._told(factors)

    def _told(self, factors: Factors) -> LowRank:
        self._tell()
        return self._layer(factors)

    def _layer(self, factors: Factors) -> LowRank:
        typed = Factors(*(part.to(self.dense.weight.dtype) for part in factors))
        return low_rank(self._shape, self._form, typed, self.dense.bias, layout_of(self.dense.weight)).eval()


class Refit(Twin):
    """A layer that stays dense, and takes the weight that makes up for the errors before it."""

    made: Plain | None

    def _has_changed(self, input: Tensor) -> bool:
        assert self.axis is not None
        return not torch.equal(*input.chunk(2, self.axis))

    def _fit(self, seen: Seen) -> Plain:
        if matrix_size(self._shape, Form.CHANNEL)[1] > LARGEST_MOMENT:
            return self._meet("its weight", None, lambda _: copy.deepcopy(self.dense))  # type: ignore[no-any-return]
        distance = apart(self._shape, seen.y.shape[2:], self._images) if self.axis == 0 else 1
        some = seen if distance > 1 else self._thinned(seen, TO_REFIT)
        part = self._moments(some, distance=distance)
        return self._pool("its input's moments", part, self._refitted)  # type: ignore[no-any-return]

    def _refitted(self, parts: list[Part]) -> Plain:
        whole, _ = self._nearest_map(parts, Form.CHANNEL)
        made = copy.deepcopy(self.dense)
        made.weight.copy_(rebuild(whole, self._shape, Form.CHANNEL).reshape(made.weight.shape))
        return made
