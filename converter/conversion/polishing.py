"""Polish: a few hundred steps of training without labels, so that converted layers give what the dense ones give.

Each layer was fitted once, in closed form, behind those before it and blind to those after it. Polishing moves all of
them together: the loss is how far each replaced layer's output is from the dense network's, over that output's
variance, and a little of how far the answers are, which alone judge on held-out images. Factors move by Muon where
images are small, all else by Adam. BatchNorm keeps its statistics. Where steps led far from the dense network, they
are taken back and shorter ones follow.

Source: global AdaPrune (in Frantar and Alistarh 2022, "SPDY") and BRECQ (Li et al. 2021), on low-rank layers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..analysis.held_out import hold_out
from ..analysis.inputs import Example, Samples, as_samples
from ..analysis.layout import laid_out
from ..analysis.probe import evaluating
from ..analysis.surveying import survey
from ..errors import ModelError, TrainingError
from .matching import Pair
from .muon import Muon, matrices_apart
from .step_sizes import longest_rate, matrix_step_size, step_size
from .views import are_small, views

_CHECKS = 10
"""How often the held-out images judge."""

_ASTRAY, _SLOWER = 1.5, 0.3
"""Where the answers are so many times farther from the dense network's than the best were, steps become so long."""

_SMALL, _LARGE = 100, 16
"""Images a step, for images of up to 64 x 64 and for larger ones, of which there are few as a rule."""

_PEAK, _MUONS_PEAK = 2.0, 1.0
"""Of the longest step that does not raise a batch's loss. Twice as far, Adam comes nearer, and Muon goes astray."""

_WARM_UP = 0.05

_MACS = 6e12
"""Multiply-adds to spend where nobody says how many steps."""

_FEWEST_STEPS, _MOST_STEPS = 40, 300


@dataclass(frozen=True)
class PolishConfig:
    """How to polish.

    Attributes:
        steps: of the optimizer, >= 1.
        batch: images a step, >= 1; None for 100, and 16 where they are larger than 64 x 64.
        rate: peak step, relative to the size of each tensor; falls by a cosine after a short warm-up. None for the
            longest that does not raise the loss of a batch, and twice as long where images are larger than 64 x 64.
        mirror: mirror half of the images, where they are maps.
        paste: paste a rectangle of another image into each, where they are maps. None for images of up to 64 x 64;
            larger ones gained nothing by it.
        seed: of the order and the augmentation.
    """

    steps: int = 300
    batch: int | None = None
    rate: float | None = None
    mirror: bool = True
    paste: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("steps", self.steps), ("batch", self.batch)):
            if value is not None and value < 1:
                raise TrainingError(f"polish {name} {value} is below 1; give at least 1")
        if self.rate is not None and not 0.0 < self.rate < 1.0:  # NaN fails this as well
            raise TrainingError(f"polish rate {self.rate:g} is not in (0, 1); try 0.01")


@dataclass(frozen=True)
class Polish:
    """What polishing did.

    Attributes:
        before, after: distance of the answers from the dense network's on held-out images, in variances of these.
        steps: that were taken.
        kept: the step whose network was kept; 0 where none was better.
    """

    before: float
    after: float
    steps: int
    kept: int

    def __str__(self) -> str:
        if not self.kept:
            return f"polishing took {self.steps} steps and was no better than the closed form, which was kept"
        nearer = f"{self.before / max(self.after, 1e-12):.1f} times nearer to the dense network"
        return f"polished in {self.kept} of {self.steps} steps: {nearer} on images that it was not polished on"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"before": self.before, "after": self.after, "steps": self.steps, "kept": self.kept}


def polish(
    model: nn.Module,
    dense: nn.Module,
    images: Example,
    config: PolishConfig | None = None,
    *,
    held_out: Example | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> Polish:
    """Trains a converted network to give what the dense one gives.

    Args:
        model: with low-rank layers; changed in place, and never for the worse on the held-out images.
        dense: the network it came from, on the same device; untouched.
        images: (N, ...). Labels are not needed.
        config: how.
        held_out: images to judge by, that the network was not fitted on; a fifth of the others where there are none.
        on_step: is told how many steps are done and the last one's loss.

    Raises:
        ModelError: nothing to polish, a network cannot take the images, or there are too few images.
    """
    config = config or PolishConfig()
    images = laid_out(dense, as_samples(images))
    held_out = None if held_out is None else laid_out(dense, as_samples(held_out))
    if len(images) < 2:
        raise ModelError(f"{len(images)} image is too few to polish on; give at least 2")
    if held_out is not None and not len(held_out):
        raise ModelError("there are no held-out images to judge by; give at least 1, or none to hold out a fifth")
    seen, judges = hold_out(images) if held_out is None else (images, held_out)
    batch_size = min(len(seen), config.batch or _usual_batch(images))
    paste = are_small(images) if config.paste is None else config.paste
    trained = [parameter for parameter in model.parameters() if parameter.is_floating_point() and parameter.numel()]
    # Of few large images Muon soon fits what is particular to them.
    matrices, others = matrices_apart(model, trained) if are_small(images) else ([], trained)

    def drawn(steps: int) -> Iterator[Samples]:
        generator = torch.Generator().manual_seed(config.seed)
        return views(seen, batch_size, steps, generator, mirror=config.mirror, paste=paste)

    with evaluating(model), evaluating(dense), _wanting_gradients(model, trained):
        pair = Pair(model, dense, images, batch_size)
        best = _Best(model, pair.judge(judges))
        step, every = 0, max(1, config.steps // _CHECKS)
        try:
            peak = _MUONS_PEAK if matrices else _PEAK
            rate = config.rate or peak * longest_rate(pair, next(drawn(1)), matrices, others)
            optimizers = _optimizers(matrices, others, rate)
            for batch in drawn(config.steps):
                for parameter in trained:
                    parameter.grad = None
                loss = pair.backward(batch)
                for optimizer in optimizers:
                    _paced(optimizer, _share(step, config.steps))
                    optimizer.step()
                step += 1
                if on_step is not None:
                    on_step(step, loss)
                is_judged = step % every == 0 or step == config.steps or not math.isfinite(loss)
                if is_judged and not best.met(step):
                    rate *= _SLOWER
                    optimizers = _optimizers(matrices, others, rate)
        finally:
            best.put_back()
    return Polish(best.before, best.distance, step, best.step)


class _Best:
    """The network when it was nearest.

    Args:
        model: as it came in.
        distance: of it, now.
    """

    def __init__(self, model: nn.Module, distance: Callable[[], float]) -> None:
        self._model = model
        self._now = distance
        self.distance = self.before = distance()
        self.step = 0
        self._state = copy.deepcopy(model.state_dict())

    def met(self, step: int) -> bool:
        """Looks whether the network is nearer after a step; where it went astray it is put back, and False."""
        found = self._now()
        if found < self.distance:
            self.distance, self.step, self._state = found, step, copy.deepcopy(self._model.state_dict())
        elif not found <= _ASTRAY * self.distance:  # NaN is not
            self.put_back()
            return False
        return True

    def put_back(self) -> None:
        """Makes the network what it was then."""
        self._model.load_state_dict(self._state)


@contextmanager
def _wanting_gradients(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Some of a network's parameters want gradients, and all want what they wanted afterwards, and have none."""
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for parameter in parameters:
            parameter.requires_grad_()
        yield
    finally:
        for parameter, before in wanted.items():
            parameter.grad = None
            parameter.requires_grad_(before)


def usual_steps(dense: nn.Module, images: Samples) -> int:
    """Steps that take a minute or two on two cores, and 300 at most.

    Args:
        dense: the network.
        images: as for `polish`.
    """
    # The dense network, and three passes' worth of ours.
    macs = 4 * survey(dense, images[:1]).macs * _usual_batch(images)
    return max(_FEWEST_STEPS, min(_MOST_STEPS, int(_MACS / max(1, macs))))


def _optimizers(
    matrices: Sequence[nn.Parameter], others: Sequence[nn.Parameter], rate: float
) -> list[torch.optim.Optimizer]:
    """Muon and Adam, whose steps are relative to the size of each tensor."""

    def groups(tensors: Sequence[nn.Parameter], size: Callable[[Tensor], float]) -> list[dict[str, Any]]:
        peaks = [rate * size(one) for one in tensors]
        return [{"params": [one], "lr": peak, "peak": peak} for one, peak in zip(tensors, peaks, strict=True)]

    found: list[torch.optim.Optimizer] = []
    if matrices:
        found.append(Muon(groups(matrices, matrix_step_size)))
    if others:
        found.append(torch.optim.Adam(groups(others, step_size)))
    return found


def _paced(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Sets each rate to a share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = share * group["peak"]


def _share(step: int, steps: int) -> float:
    """Of the peak rate: a linear warm-up, then half a cosine."""
    warm = max(1, round(_WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _usual_batch(images: Samples) -> int:
    """Images a step."""
    return _SMALL if are_small(images) else _LARGE
