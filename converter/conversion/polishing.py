"""Polish: a few hundred steps of training without labels, so that converted layers give what the dense ones give.

Each layer was fitted once, in closed form, behind those before it and blind to those after it. Polishing moves all of
them together: the loss is how far each replaced layer's output is from the dense network's, over that output's
variance, and the same of the answers. BatchNorm keeps its statistics.

Source: global AdaPrune (in Frantar and Alistarh 2022, "SPDY") and BRECQ (Li et al. 2021), on low-rank layers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..analysis.memory import ACTIVATION_BYTES
from ..analysis.norm_pairs import norm_pairs
from ..analysis.probe import evaluating
from ..analysis.running import run, tensors_in
from ..errors import ModelError, TrainingError
from ..lowrank.layers import LowRank

_CHECKS = 10
"""How often the held-out images judge."""

_SMALLEST = 1e-2
"""Size that a tensor near zero is taken to have, relative to 1: a bias of zeros must be able to move."""

_WARM_UP = 0.05


@dataclass(frozen=True)
class PolishConfig:
    """How to polish.

    Attributes:
        steps: of the optimizer, >= 1.
        batch: images a step, >= 1; None for 100, and fewer where they are larger than 64 x 64.
        rate: peak step, relative to the size of each tensor; falls by a cosine after a short warm-up.
        augment: mirror and shift the images, where they are maps.
        seed: of the order and the augmentation.
    """

    steps: int = 300
    batch: int | None = None
    rate: float = 0.01
    augment: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("steps", self.steps), ("batch", self.batch)):
            if value is not None and value < 1:
                raise TrainingError(f"polish {name} {value} is below 1; give at least 1")
        if not 0.0 < self.rate < 1.0:  # NaN fails this as well
            raise TrainingError(f"polish rate {self.rate:g} is not in (0, 1); try 0.01")


@dataclass(frozen=True)
class Polish:
    """What polishing did.

    Attributes:
        before, after: distance from the dense network on held-out images, in variances of what is compared.
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
    images: Tensor,
    config: PolishConfig | None = None,
    *,
    on_step: Callable[[int, float], None] | None = None,
) -> Polish:
    """Trains a converted network to give what the dense one gives.

    Args:
        model: with low-rank layers; changed in place, and never for the worse on the held-out images.
        dense: the network it came from, on the same device; untouched.
        images: (N, ...), N >= 2; a fifth of them is held out to judge. Labels are not needed.
        config: how.
        on_step: is told how many steps are done and the last one's loss.

    Raises:
        ModelError: nothing to polish, a network cannot take the images, or there are fewer than two.
    """
    config = config or PolishConfig()
    places = _places(model, dense, images)
    if not places:
        raise ModelError("the network has no low-rank layer that runs; convert it first, then polish")
    if len(images) < 2:
        raise ModelError(f"{len(images)} image is too few to polish on; give at least 2")
    held_out = images[::5]
    seen = torch.cat([images[start::5] for start in range(1, 5)])
    batch_size = min(len(seen), config.batch or _batch(images))
    pair = _Pair(model, dense, places, _micro_batch(model, images, batch_size))
    best = before = pair.distance(held_out)
    kept, state = 0, copy.deepcopy(model.state_dict())
    every = max(1, config.steps // _CHECKS)
    wanting = {parameter: parameter.requires_grad for parameter in model.parameters()}
    optimizer = _optimizer(list(wanting), config.rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, config.steps))
    generator = torch.Generator().manual_seed(config.seed)
    step = 0
    try:
        with evaluating(model), evaluating(dense):
            for batch in _batches(seen, batch_size, config, generator):
                optimizer.zero_grad()
                loss = pair.backward(batch)
                if not math.isfinite(loss):
                    break
                optimizer.step()
                schedule.step()
                step += 1
                if on_step is not None:
                    on_step(step, loss)
                if step % every == 0 or step == config.steps:
                    found = pair.distance(held_out)
                    if found < best:
                        best, kept, state = found, step, copy.deepcopy(model.state_dict())
    finally:
        model.load_state_dict(state)
        optimizer.zero_grad()
        for parameter, wanted in wanting.items():
            parameter.requires_grad_(wanted)
    return Polish(before, best, step, kept)


def _optimizer(parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """Adam whose steps are relative to the size of each tensor; all that can be trained is."""
    groups = []
    for parameter in parameters:
        parameter.requires_grad_(parameter.is_floating_point())
        if parameter.requires_grad and parameter.numel():
            size = float(parameter.detach().float().square().mean().sqrt())
            groups.append({"params": [parameter], "lr": rate * max(size, _SMALLEST)})
    return torch.optim.Adam(groups)


def _share(step: int, steps: int) -> float:
    """Of the peak rate: a linear warm-up, then half a cosine."""
    warm = max(1, round(_WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _batch(images: Tensor) -> int:
    return 100 if images.dim() != 4 or images.shape[2] * images.shape[3] <= 64 * 64 else 32


def _batches(images: Tensor, size: int, config: PolishConfig, generator: torch.Generator) -> Iterator[Tensor]:
    order = torch.empty(0, dtype=torch.long)
    for _ in range(config.steps):
        if len(order) < size:
            order = torch.randperm(len(images), generator=generator)
        batch = images[order[:size].to(images.device)]
        order = order[size:]
        yield _augmented(batch, generator) if config.augment else batch


def _augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the images mirrored, and all of them shifted by up to an eighth of their size."""
    if images.dim() != 4 or not images.is_floating_point():
        return images
    flip = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
    images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    for axis in (2, 3):
        most = images.shape[axis] // 8
        shift = int(torch.randint(-most, most + 1, (1,), generator=generator))
        images = images.roll(shift, axis)
        edge = images.narrow(axis, 0 if shift >= 0 else images.shape[axis] + shift, abs(shift))
        edge.zero_()
    return images


def _places(model: nn.Module, dense: nn.Module, images: Tensor) -> list[str]:
    """Where outputs are compared: at each low-rank layer, or at the norm that takes up its mean."""
    norms = {pair.layer: pair.norm for pair in norm_pairs(dense, [images[:2]])}
    layers = [name for name, module in model.named_modules() if isinstance(module, LowRank)]
    wanted = [norms.get(name, name) for name in layers]
    ran: set[str] = set()
    with _watched(model, wanted, lambda name, _: ran.add(name)), evaluating(model), torch.no_grad():
        run(model, images[:2])
    return [name for name in wanted if name in ran]


@contextmanager
def _watched(model: nn.Module, names: list[str], look: Callable[[str, Tensor], None]) -> Iterator[None]:
    def hook(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: look(name, output) if isinstance(output, Tensor) else None

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _micro_batch(model: nn.Module, images: Tensor, batch: int) -> int:
    """Images whose activations, kept for the way back, are in memory together."""
    taken = 0

    def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal taken
        taken += sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(output))

    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [module.register_forward_hook(look) for module in leaves]
    try:
        with evaluating(model), torch.no_grad():
            run(model, images[:1])
    finally:
        for handle in handles:
            handle.remove()
    return max(1, min(batch, ACTIVATION_BYTES // (4 * max(1, taken))))


class _Pair:
    """A converted network beside its dense one."""

    def __init__(self, model: nn.Module, dense: nn.Module, places: list[str], micro_batch: int) -> None:
        self._model = model
        self._dense = dense
        self._places = list(dict.fromkeys(places))
        self._micro_batch = micro_batch

    def backward(self, images: Tensor) -> float:
        """Gradients of the loss on a batch, some images at a time."""
        total = 0.0
        for part in torch.split(images, self._micro_batch):
            with torch.enable_grad():
                loss = self._loss(part) * (len(part) / len(images))
                loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    @torch.no_grad()
    def distance(self, images: Tensor) -> float:
        """The loss on images."""
        with evaluating(self._model), evaluating(self._dense):
            parts = torch.split(images, self._micro_batch)
            return sum(float(self._loss(part)) * len(part) for part in parts) / len(images)

    def _loss(self, images: Tensor) -> Tensor:
        wanted: dict[str, list[Tensor]] = {}

        def keep(name: str, output: Tensor) -> None:
            wanted.setdefault(name, []).append(output.detach().clone())

        with torch.no_grad(), _watched(self._dense, self._places, keep):
            answers = _floats(run(self._dense, images.clone()))
        losses: list[Tensor] = []
        calls = dict.fromkeys(self._places, 0)

        def compare(name: str, output: Tensor) -> None:
            there = wanted.get(name, [])
            if calls[name] < len(there) and there[calls[name]].shape == output.shape:
                losses.append(_apart(output, there[calls[name]]))
            calls[name] += 1

        with _watched(self._model, self._places, compare):
            ours = _floats(run(self._model, images.clone()))
        inner = torch.stack(losses).mean() if losses else None
        outer = [
            _apart(mine, theirs) for mine, theirs in zip(ours, answers, strict=False) if mine.shape == theirs.shape
        ]
        last = torch.stack(outer).mean() if outer else None
        both = [loss for loss in (inner, last) if loss is not None]
        if not both:
            raise ModelError("the networks' outputs cannot be compared; polishing needs tensors of one shape in both")
        return torch.stack(both).sum()


def _floats(answer: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_in(answer) if tensor.is_floating_point()]


def _apart(output: Tensor, wanted: Tensor) -> Tensor:
    """Mean square of the difference, in variances of what is wanted."""
    wanted = wanted.float()
    return (output.float() - wanted).square().mean() / wanted.var(correction=0).clamp_min(1e-12)
