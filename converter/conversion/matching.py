"""How far a converted network is from the dense one, at every replaced layer and in its answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..analysis.answer_slopes import TEMPERATURE
from ..analysis.inputs import Samples
from ..analysis.memory import ACTIVATION_BYTES
from ..analysis.norm_pairs import norm_pairs
from ..analysis.opening import opened
from ..analysis.probe import evaluating
from ..analysis.running import class_axis, run, tensors_in
from ..errors import ModelError
from ..lowrank.layers import LowRank
from .attached import products_of

Sizes = dict[str, list[float]]
"""By place, the variance of what the dense network gives there, in each call."""

_ANSWERS = 0.1
"""Weight of the answers beside the layers. As much as the layers, they come less near on other images; without them
nothing leads a network that is cut so far that its layers cannot come near."""


@dataclass(frozen=True)
class Compared:
    """Two networks on the same images.

    Attributes:
        answer, wanted: the converted network's and the dense one's.
        layers: mean over places of the square of the difference there, in variances; None where there is no place.
    """

    answer: Any
    wanted: Any
    layers: Tensor | None


class Pair:
    """A converted network beside its dense one; both on one device, and evaluating while they are compared."""

    def __init__(
        self, model: nn.Module, dense: nn.Module, images: Samples, batch: int, sizes: Sizes | None = None
    ) -> None:
        """Finds where outputs are compared: at each low-rank layer, or at the norm that takes up its mean.

        Args:
            model, dense: the networks.
            images: (N, ...), a few of which are run.
            batch: images that are wanted at a time; fewer where their activations would not fit into memory.
            sizes: variances to measure differences in, of an earlier pair; None for those of the images.

        Raises:
            ModelError: a network cannot take the images, or no low-rank layer runs.
        """
        dense = opened(dense, [name for name, _ in model.named_modules()], products_of(model))
        self._model = model
        self._dense = dense
        self._places = _places(model, dense, images)
        if not self._places:
            raise ModelError("the network has no low-rank layer that runs; convert it first, then polish")
        self._at_once = _at_once(model, images, batch)
        self.sizes = sizes or _sizes(dense, self._places, images[:batch].split(self._at_once))

    def backward(self, images: Samples) -> float:
        """Gradients of the loss of a batch, some images at a time."""
        total = 0.0
        for part in images.split(self._at_once):
            with torch.enable_grad():
                loss = self._loss(part) * (len(part) / len(images))
                loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    @torch.no_grad()
    def loss(self, images: Samples) -> float:
        """Of a batch: the distance at the replaced layers, and a little of that of the answers."""
        parts = images.split(self._at_once)
        return sum(float(self._loss(part)) * len(part) for part in parts) / len(images)

    @torch.no_grad()
    def judge(self, images: Samples) -> Callable[[], float]:
        """How far the answers to some images are apart, to be asked again and again; the dense ones are kept."""
        parts = images.split(self._at_once)
        kept = [_floats(run(self._dense, part.clone())) for part in parts]

        @torch.no_grad()
        def distance() -> float:
            losses = (
                float(_answers_apart(_floats(run(self._model, part.clone())), wanted)) * len(part)
                for part, wanted in zip(parts, kept, strict=True)
            )
            return sum(losses) / len(images)

        return distance

    def compare(self, images: Samples) -> Compared:
        """Runs both, the dense one without gradients; the mode of the converted one is the caller's."""
        inside: dict[str, list[Tensor]] = {}
        losses: list[Tensor] = []
        calls = dict.fromkeys(self._places, 0)

        def keep(name: str, output: Tensor) -> None:
            inside.setdefault(name, []).append(output.detach().clone())  # what follows may write to it

        def compare(name: str, output: Tensor) -> None:
            call, there, sizes = calls[name], inside.get(name, []), self.sizes[name]
            if call < min(len(there), len(sizes)) and there[call].shape == output.shape:
                apart = output.float() - there[call].float()  # the output itself may be written to by what follows
                losses.append(_mean_square(apart) / sizes[call])
            calls[name] += 1

        with torch.no_grad(), _watched(self._dense, self._places, keep):
            wanted = run(self._dense, images.clone())
        with _watched(self._model, self._places, compare):
            answer = run(self._model, images.clone())
        return Compared(answer, wanted, torch.stack(losses).mean() if losses else None)

    def _loss(self, images: Samples) -> Tensor:
        found = self.compare(images)
        answers = _answers_apart(_floats(found.answer), _floats(found.wanted))
        return answers if found.layers is None else found.layers + _ANSWERS * answers


def _places(model: nn.Module, dense: nn.Module, images: Samples) -> list[str]:
    norms = {pair.layer: pair.norm for pair in norm_pairs(dense, [images[:2]])}
    layers = [name for name, module in model.named_modules() if isinstance(module, LowRank)]
    wanted = [norms.get(name, name) for name in layers]
    ran: set[str] = set()
    with _watched(model, wanted, lambda name, _: ran.add(name)), evaluating(model), torch.no_grad():
        run(model, images[:2])
    return [name for name in dict.fromkeys(wanted) if name in ran]


@torch.no_grad()
def _sizes(dense: nn.Module, places: list[str], parts: Sequence[Samples]) -> Sizes:
    """Variance of what each place gives in each of its calls; of its size where it is nearly constant."""
    sums: dict[str, list[Tensor]] = {name: [] for name in places}

    def look(name: str, output: Tensor) -> None:
        values = output.float()
        found = torch.tensor([values.numel(), float(values.sum()), float(values.square().sum())], dtype=torch.float64)
        if calls[name] < len(sums[name]):
            sums[name][calls[name]] += found
        else:
            sums[name].append(found)
        calls[name] += 1

    for part in parts:
        calls = dict.fromkeys(places, 0)
        with _watched(dense, places, look):
            run(dense, part.clone())
    return {name: [_size(*call.tolist()) for call in found] for name, found in sums.items()}


def _mean_square(values: Tensor) -> Tensor:
    """In one pass over them, and one on the way back."""
    length: Tensor = torch.linalg.vector_norm(values)
    return length.square() / values.numel()


def _size(count: float, total: float, squares: float) -> float:
    square, mean = squares / max(1.0, count), total / max(1.0, count)
    return max(square - mean**2, 1e-3 * square, 1e-12)


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


def _at_once(model: nn.Module, images: Samples, batch: int) -> int:
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
    return max(1, min(batch, ACTIVATION_BYTES // (2 * max(1, taken))))


def _floats(answer: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_in(answer) if tensor.is_floating_point()]


def _answers_apart(ours: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """Divergence of softened answers, in what is nearly variances of them; of answers without classes, variances.

    Raises:
        ModelError: the answers cannot be compared.
    """
    pairs = [(mine, theirs) for mine, theirs in zip(ours, wanted, strict=False) if mine.shape == theirs.shape]
    if not pairs:
        raise ModelError("the networks' answers cannot be compared; polishing needs tensors of one shape in both")
    return torch.stack([_softened(*pair) for pair in pairs]).mean()


def _softened(output: Tensor, wanted: Tensor) -> Tensor:
    axis = class_axis(output)
    if output.dim() < 2 or output.shape[axis] < 2:
        return _variances(output, wanted)
    ours, theirs = (scores.float().movedim(axis, -1).flatten(0, -2) / TEMPERATURE for scores in (output, wanted))
    divergence = F.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="batchmean")
    return (
        2 * divergence / theirs.var(-1, correction=0).mean().clamp_min(1e-12)
    )  # of small differences, their variance


def _variances(output: Tensor, wanted: Tensor) -> Tensor:
    """Mean square of the difference, in variances of what is wanted; of its size where it is nearly constant."""
    wanted = wanted.float()
    size = torch.maximum(wanted.var(correction=0), 1e-3 * wanted.square().mean())
    return (output.float() - wanted).square().mean() / size.clamp_min(1e-12)
