"""BatchNorm statistics of a converted network, taken anew only where that helps."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .probe import evaluating

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@torch.no_grad()
def reestimate(model: nn.Module, dense: nn.Module, images: Tensor, *, batch: int = 250) -> bool:
    """Takes running means and variances anew, if that brings the outputs nearer to the dense network's.

    Args:
        model: the converted network, changed in place when it helps.
        dense: the network it came from.
        images: (N, ...); one in five is held out to judge.
        batch: images a forward pass.

    Returns:
        Whether the new statistics were kept.
    """
    held_out, seen = images[::5], torch.cat([images[start::5] for start in range(1, 5)])
    norms = [module for module in model.modules() if isinstance(module, _NORMS) and module.track_running_stats]
    if not norms or len(seen) < 2:
        return False
    before = divergence(model, dense, held_out, batch=batch)
    saved = [copy.deepcopy(norm.state_dict()) for norm in norms]
    momenta = [norm.momentum for norm in norms]
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over batches
            norm.train()
        for part in torch.split(seen, batch):
            if len(part) > 1:
                model(part)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    if divergence(model, dense, held_out, batch=batch) < before:
        return True
    for norm, state in zip(norms, saved, strict=True):
        norm.load_state_dict(state)
    return False


@torch.no_grad()
def divergence(model: nn.Module, dense: nn.Module, images: Tensor, *, batch: int = 250) -> float:
    """Mean Kullback-Leibler divergence of the outputs from the dense network's, in nats an image.

    Args:
        model, dense: give (N, classes).
        images: (N, ...).
        batch: images a forward pass.
    """
    total = 0.0
    with evaluating(model), evaluating(dense):
        for part in torch.split(images, batch):
            ours, wanted = F.log_softmax(model(part).float(), -1), F.log_softmax(dense(part).float(), -1)
            total += float(F.kl_div(ours, wanted, log_target=True, reduction="sum"))
    return total / max(1, len(images))
