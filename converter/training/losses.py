"""The three losses of DPRP, and distillation.

    L = L_task + lambda_o * sum_l ( |u^T u - I|_F^2 + |v v^T - I|_F^2 ) / r_l^2 + lambda_r * sum_l w_l R(s_l)

The triad (task, orthogonality, rank) is DPRP's (arXiv 2401.08014), of which only the abstract is available to us:
the formulas are our reading, after Yang et al. (arXiv 2004.09031).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum

import torch
from torch import Tensor
from torch.nn import functional as F

from ..lowrank.layers import LowRank


class RankPenalty(str, Enum):
    """What pulls singular values to zero."""

    NUCLEAR = "nuclear"
    HOYER = "hoyer"

    def __str__(self) -> str:
        return self.value


def orthogonality(layers: Iterable[LowRank]) -> Tensor:
    """How far the factors are from a true SVD: sum over layers of (|u^T u - I|^2 + |v v^T - I|^2) / r^2.

    Groups of one layer are averaged. Computed in float32 outside autocast.

    Returns:
        () float32; 0 when every u has orthonormal columns and every v orthonormal rows.
    """
    terms = []
    for layer in layers:
        with torch.autocast(layer.u.device.type, enabled=False):
            u, v = layer.u.float(), layer.v.float()
            eye = torch.eye(layer.rank, device=u.device)
            off = (u.mT @ u - eye).square() + (v @ v.mT - eye).square()
            terms.append(off.mean(dim=(-2, -1)).mean())  # the mean over r x r is the division by r^2
    return torch.stack(terms).sum() if terms else torch.zeros(())


def rank_penalty(layers: Mapping[str, LowRank], weights: Mapping[str, float], kind: RankPenalty) -> Tensor:
    """Weighted sum over layers of R(s).

    R is the mean of |s| (nuclear), or Hoyer's |s|_1 / |s|_2 - 1, which does not change when s is scaled as a whole
    and so presses on the rank alone.

    Args:
        layers: by name.
        weights: w_l by name; a layer's cost per rank, so that expensive ranks are pressed harder.

    Returns:
        () float32.
    """
    terms = []
    for name, layer in layers.items():
        s = layer.s.float().abs()
        if kind is RankPenalty.NUCLEAR:
            value = s.mean(-1)
        else:
            value = s.sum(-1) / s.square().sum(-1).clamp_min(1e-12).sqrt() - 1
        terms.append(weights[name] * value.mean())
    return torch.stack(terms).sum() if terms else torch.zeros(())


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence from the teacher's softened distribution, times T^2.

    Args:
        student, teacher: (N, classes) logits.
        temperature: T > 0; a higher one shows more of the teacher's doubts.

    Source: Hinton, Vinyals and Dean (2015).
    """
    log_student = F.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=-1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2
