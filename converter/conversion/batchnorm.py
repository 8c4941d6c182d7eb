"""BatchNorm statistics of a converted network, moved towards its own only as far as that helps."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..analysis.divergence import answers, divergence_between
from ..analysis.held_out import hold_out
from ..analysis.inputs import Samples
from ..analysis.probe import evaluating
from ..analysis.running import run

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


_WAYS = (0.25, 0.5, 1.0)
"""Parts of the way from old statistics to new ones: few images, or a good fit, ask for small ones."""


@torch.no_grad()
def reestimate(model: nn.Module, dense: nn.Module, images: Samples, *, batch: int = 50) -> float:
    """Moves running means and variances towards those of the converted network, as far as that helps its answers.

    Args:
        model: the converted network, changed in place when it helps.
        dense: the network it came from.
        images: (N, ...); one in five is held out to judge.
        batch: images a forward pass.

    Raises:
        ModelError: the network cannot take the images; it is as it was then.

    Returns:
        Which part of the way the statistics went: 0 where the old ones are the best.
    """
    seen, held_out = hold_out(images)
    saved = running_statistics(model)
    if not saved or len(seen) < 2:
        return 0.0
    norms = [norm for norm, _ in saved]
    before = [state for _, state in saved]
    wanted = answers(dense, held_out, batch=batch)

    def apart() -> float:
        return divergence_between(answers(model, held_out, batch=batch), wanted, len(held_out))

    momenta = [norm.momentum for norm in norms]
    best = (apart(), 0.0, before)
    try:
        after = _taken_anew(model, norms, seen.split(batch))
        for way in _WAYS:
            between = [_between(*states, way) for states in zip(before, after, strict=True)]
            _put(norms, between)
            best = min(best, (apart(), way, between), key=lambda tried: tried[0])
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        _put(norms, best[2])
    return best[1]


def _taken_anew(model: nn.Module, norms: Sequence[_BatchNorm], parts: Sequence[Samples]) -> list[dict[str, Tensor]]:
    """States of the norms with statistics of these images; leaves the norms in them."""
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over batches
            norm.train()
        for part in parts:
            if len(part) > 1:
                run(model, part)
    return [copy.deepcopy(norm.state_dict()) for norm in norms]


def _between(before: Mapping[str, Tensor], after: Mapping[str, Tensor], way: float) -> dict[str, Tensor]:
    """A norm's state with statistics some part of the way from one to the other."""
    moved = {name: before[name].lerp(after[name], way) for name in ("running_mean", "running_var")}
    return {**before, **moved}


def _put(norms: Sequence[_BatchNorm], states: Sequence[Mapping[str, Tensor]]) -> None:
    for norm, state in zip(norms, states, strict=True):
        norm.load_state_dict(state)


def running_statistics(model: nn.Module) -> list[tuple[_BatchNorm, dict[str, Tensor]]]:
    """The norms of a network that keep statistics, each with a copy of its state."""
    return [
        (module, copy.deepcopy(module.state_dict()))
        for module in model.modules()
        if isinstance(module, _NORMS) and module.track_running_stats
    ]


@torch.no_grad()
def shift_norms(model: nn.Module, shifts: Mapping[str, Tensor]) -> None:
    """Has norms take up what their inputs lack in the mean: (channels,) by name. In place."""
    for name, shift in shifts.items():
        norm = model.get_submodule(name)
        assert isinstance(norm, _NORMS)
        assert norm.running_mean is not None
        norm.running_mean.sub_(shift.to(norm.running_mean))
