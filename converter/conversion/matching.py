"""How far a converted network is from the dense one, at every replaced layer and in its answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..analysis.memory import ACTIVATION_BYTES
from ..analysis.norm_pairs import norm_pairs
from ..analysis.probe import evaluating
from ..analysis.running import run, tensors_in
from ..errors import ModelError
from ..lowrank.layers import LowRank


class Wanted(NamedTuple):
    """What the dense network gives.

    Attributes:
        inside: by place, one tensor a call.
        answers: its outputs.
    """

    inside: dict[str, list[Tensor]]
    answers: list[Tensor]

    @property
    def size(self) -> int:
        """In bytes."""
        tensors = [*self.answers, *(tensor for calls in self.inside.values() for tensor in calls)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Pair:
    """A converted network beside its dense one; both on one device, and evaluating while they are compared."""

    def __init__(self, model: nn.Module, dense: nn.Module, images: Tensor, batch: int) -> None:
        """Finds where outputs are compared: at each low-rank layer, or at the norm that takes up its mean.

        Args:
            model, dense: the networks.
            images: (N, ...), a few of which are run.
            batch: images that are wanted at a time; fewer where their activations would not fit into memory.

        Raises:
            ModelError: a network cannot take the images, or no low-rank layer runs.
        """
        self._model = model
        self._dense = dense
        self._places = _places(model, dense, images)
        if not self._places:
            raise ModelError("the network has no low-rank layer that runs; convert it first, then polish")
        self._at_once = _at_once(model, images, batch)

    def backward(self, images: Tensor) -> float:
        """Gradients of the distance on a batch, some images at a time."""
        total = 0.0
        for part in torch.split(images, self._at_once):
            with torch.enable_grad():
                loss = self._apart(part, self._wanted(part)) * (len(part) / len(images))
                loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    @torch.no_grad()
    def judge(self, images: Tensor) -> Callable[[], float]:
        """The distance on images, again and again; what the dense network gives is kept where memory allows."""
        parts = torch.split(images, self._at_once)
        first = self._wanted(parts[0])
        fits = first.size * len(parts) <= ACTIVATION_BYTES
        kept = [first, *(self._wanted(part) for part in parts[1:])] if fits else None

        @torch.no_grad()
        def distance() -> float:
            total = 0.0
            for place, part in enumerate(parts):
                wanted = self._wanted(part) if kept is None else kept[place]
                total += float(self._apart(part, wanted)) * len(part)
            return total / len(images)

        return distance

    @torch.no_grad()
    def _wanted(self, images: Tensor) -> Wanted:
        inside: dict[str, list[Tensor]] = {}

        def keep(name: str, output: Tensor) -> None:
            inside.setdefault(name, []).append(output.detach().clone())  # what follows may write to it

        with _watched(self._dense, self._places, keep):
            answers = _floats(run(self._dense, images.clone()))
        return Wanted(inside, answers)

    def _apart(self, images: Tensor, wanted: Wanted) -> Tensor:
        losses: list[Tensor] = []
        calls = dict.fromkeys(self._places, 0)

        def compare(name: str, output: Tensor) -> None:
            there = wanted.inside.get(name, [])
            if calls[name] < len(there) and there[calls[name]].shape == output.shape:
                losses.append(_variances(output, there[calls[name]]))
            calls[name] += 1

        with _watched(self._model, self._places, compare):
            ours = _floats(run(self._model, images.clone()))
        pairs = zip(ours, wanted.answers, strict=False)
        outer = [_variances(mine, theirs) for mine, theirs in pairs if mine.shape == theirs.shape]
        both = [torch.stack(some).mean() for some in (losses, outer) if some]
        if not both:
            raise ModelError("the networks' outputs cannot be compared; polishing needs tensors of one shape in both")
        return torch.stack(both).sum()


def _places(model: nn.Module, dense: nn.Module, images: Tensor) -> list[str]:
    norms = {pair.layer: pair.norm for pair in norm_pairs(dense, [images[:2]])}
    layers = [name for name, module in model.named_modules() if isinstance(module, LowRank)]
    wanted = [norms.get(name, name) for name in layers]
    ran: set[str] = set()
    with _watched(model, wanted, lambda name, _: ran.add(name)), evaluating(model), torch.no_grad():
        run(model, images[:2])
    return [name for name in dict.fromkeys(wanted) if name in ran]


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


def _at_once(model: nn.Module, images: Tensor, batch: int) -> int:
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


def _floats(answer: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_in(answer) if tensor.is_floating_point()]


def _variances(output: Tensor, wanted: Tensor) -> Tensor:
    """Mean square of the difference, in variances of what is wanted."""
    wanted = wanted.float()
    return (output.float() - wanted).square().mean() / wanted.var(correction=0).clamp_min(1e-12)
