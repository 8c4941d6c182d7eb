"""Which of several plans holds: each is converted on some of the images and judged on others.

Losses of layers add up only as long as they are small, and no rule for them is right for every network. What a plan
does to the answers can be seen, without labels, before all images are spent on it.

Source: the idea of SPDY (Frantar and Alistarh 2022): plans come from scaled losses of layers, and the
network decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..analysis.answer_changes import TEMPERATURE
from ..analysis.calibration import Calibration
from ..analysis.probe import evaluating
from ..analysis.running import log_probabilities, run
from ..planning.plan import Plan
from .converting import convert

_FITTED, _JUDGED = 256, 600
"""Images at most; a third of them all judges."""


@torch.no_grad()
def choose_plan(model: nn.Module, plans: Sequence[Plan], calibration: Calibration) -> int:
    """The plan whose network answers most like the dense one on images that it was not fitted on.

    Args:
        model: the dense network; untouched.
        plans: at least one.
        calibration: of the model, two images or more; with fewer the first plan is taken.

    Returns:
        Its place among the plans; the first where several are equal.

    Raises:
        ModelError: as `convert`.
    """
    different = {plan.layers: place for place, plan in reversed(list(enumerate(plans)))}
    judges = calibration.images[::3][:_JUDGED]
    others = torch.cat([calibration.images[1::3], calibration.images[2::3]])[:_FITTED]
    if len(different) < 2 or not len(others):
        return 0
    trial = replace(calibration, images=others)
    wanted = _softened(model, judges)
    scores = {
        place: _divergence(_softened(convert(model, plans[place], calibration=trial), judges), wanted)
        for place in sorted(different.values())
    }
    return min(scores, key=lambda place: scores[place])


def _softened(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Log-probabilities at a temperature: sure answers say little of how near others came."""
    with evaluating(model):
        return [
            F.log_softmax(log_probabilities(run(model, part)) / TEMPERATURE, -1) for part in torch.split(images, 50)
        ]


def _divergence(ours: list[Tensor], wanted: list[Tensor]) -> float:
    pairs = zip(ours, wanted, strict=True)
    total = sum(float(F.kl_div(mine, theirs, log_target=True, reduction="sum")) for mine, theirs in pairs)
    return total if total == total else float("inf")
