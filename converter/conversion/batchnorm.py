"""BatchNorm statistics of a converted network, taken anew only where that helps."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..analysis.divergence import answers, divergence_between
from ..analysis.held_out import hold_out
from ..analysis.inputs import Samples
from ..analysis.probe import evaluating
from ..analysis.running import run

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@torch.no_grad()
def reestimate(model: nn.Module, dense: nn.Module, images: Samples, *, batch: int = 50) -> bool:
    """Takes running means and variances anew, if that brings the outputs nearer to the dense network's.

    Args:
        model: the converted network, changed in place when it helps.
        dense: the network it came from.
        images: (N, ...); one in five is held out to judge.
        batch: images a forward pass.

    Raises:
        ModelError: the network cannot take the images; it is as it was then.

    Returns:
        Whether the new statistics were kept.
    """
    seen, held_out = hold_out(images)
    saved = running_statistics(model)
    if not saved or len(seen) < 2:
        return False
    norms = [norm for norm, _ in saved]
    wanted = answers(dense, held_out, batch=batch)

    def apart() -> float:
        return divergence_between(answers(model, held_out, batch=batch), wanted, len(held_out))

    before = apart()
    momenta = [norm.momentum for norm in norms]
    kept = False
    try:
        with evaluating(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a plain mean over batches
                norm.train()
            for part in seen.split(batch):
                if len(part) > 1:
                    run(model, part)
        kept = apart() < before
    finally:
        for (norm, state), momentum in zip(saved, momenta, strict=True):
            norm.momentum = momentum
            if not kept:
                norm.load_state_dict(state)
    return kept


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
