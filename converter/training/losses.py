"""The losses of DPRP, and distillation.

    L = L_task + lambda_o * sum_l ( |u^T u - I|_F^2 + |v v^T - I|_F^2 ) / r_l^2 + lambda_r * sum_l w_l R(s_l)

The triad (task, orthogonality, rank) is DPRP's (arXiv 2401.08014), of which only the abstract is available to us:
the formulas are our reading, after Yang et al. (arXiv 2004.09031).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..analysis.running import class_axis, scores_in
from ..lowrank.layers import LowRank
from .config import RankPenalty


def cross_entropy(outputs: Any, targets: Any, label_smoothing: float = 0.0) -> Tensor:
    """Of the first output; (N, classes) or a map of scores (N, classes, H, W).

    Args:
        outputs: the network's answer.
        targets: (N,) or (N, H, W) classes, or probabilities of the outputs' shape.
        label_smoothing: part of the target that goes to all classes.
    """
    return F.cross_entropy(scores_in(outputs).float(), targets, label_smoothing=label_smoothing)


def orthogonality(layers: Iterable[LowRank]) -> Tensor:
    """How far the factors are from a true SVD: sum over layers of (|u^T u - I|^2 + |v v^T - I|^2) / r^2.

    Groups of one layer are averaged; layers of one shape are computed together. In float32 outside autocast.

    Returns:
        () float32; 0 when every u has orthonormal columns and every v orthonormal rows.
    """
    alike: dict[tuple[torch.Size, torch.Size], list[LowRank]] = {}
    for layer in layers:
        alike.setdefault((layer.u.shape, layer.v.shape), []).append(layer)
    terms = []
    for same in alike.values():
        with torch.autocast(same[0].u.device.type, enabled=False):
            u = torch.stack([layer.u for layer in same]).float()
            v = torch.stack([layer.v for layer in same]).float()
            eye = torch.eye(same[0].rank, device=u.device)
            off = (u.mT @ u - eye).square() + (v @ v.mT - eye).square()
            terms.append(off.flatten(1).mean(1).sum())  # the mean over r x r is the division by r^2
    return torch.stack(terms).sum() if terms else torch.zeros(())


def rank_penalty(
    layers: Mapping[str, LowRank],
    weights: Mapping[str, float],
    kind: RankPenalty,
    kept: Mapping[str, int] | None = None,
) -> Tensor:
    """Weighted sum over layers of R(s).

    R is the mean of |s| (nuclear), or Hoyer's |s|_1 / |s|_2 - 1, which does not change when s is scaled as a whole
    and so presses on the rank alone, or |s_tail|^2 / |s_head|^2 (tail; after BSR, Idelbayev and others 2020).

    Args:
        layers: by name.
        weights: w_l by name; a layer's cost per rank, so that expensive ranks are pressed harder.
        kind: R.
        kept: how many of the largest values are the head, by name; of `tail` alone.

    Returns:
        () float32.
    """
    terms = []
    for name, layer in layers.items():
        s = layer.s.float().abs()
        if kind is RankPenalty.NUCLEAR:
            value = s.mean(-1)
        elif kind is RankPenalty.HOYER:
            value = s.sum(-1) / s.square().sum(-1).clamp_min(1e-12).sqrt() - 1
        else:
            head = (kept or {}).get(name, layer.rank)
            squares = s.sort(-1, descending=True).values.square()
            value = squares[..., head:].sum(-1) / squares[..., :head].sum(-1).clamp_min(1e-12)
        terms.append(weights[name] * value.mean())
    return torch.stack(terms).sum() if terms else torch.zeros(())


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence from the teacher's softened distribution, times T^2.

    Of answers without classes, a vector of numbers for instance, the mean square in variances of the teacher's.

    Args:
        student, teacher: (N, classes) logits, or maps of them (N, classes, H, W).
        temperature: T > 0; a higher one shows more of the teacher's doubts.

    Source: Hinton, Vinyals and Dean (2015).
    """
    axis = class_axis(student)
    if student.dim() < 2 or student.shape[axis] < 2:
        return (student.float() - teacher.float()).square().mean() / teacher.float().var(correction=0).clamp_min(
            1e-12
        )
    ours, theirs = (scores.float().movedim(axis, -1).flatten(0, -2) / temperature for scores in (student, teacher))
    log_ours, log_theirs = ours.log_softmax(-1), theirs.log_softmax(-1)
    return F.kl_div(log_ours, log_theirs, reduction="batchmean", log_target=True) * temperature**2
