"""Which of several plans holds: each is converted on some of the images and judged on others.

Losses of layers add up only as long as they are small, and no rule for them is right for every network. What a plan
does to the answers can be seen, without labels, before all images are spent on it. Sure answers, as those to images
that a network has learned by heart, say little of how near others came: they are softened until they are less sure.

Source: the idea of SPDY (Frantar and Alistarh 2022): plans come from scaled losses of layers, and the
network decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..analysis.calibration import Calibration
from ..analysis.divergence import answers, divergence_between, softened
from ..analysis.inputs import joined
from ..planning.plan import Plan
from .converting import convert

_FEWEST_FITTED, _MOST_FITTED, _MOST_JUDGES = 64, 512, 1000
"""Images; those that a trial is not fitted on judge it, a third of them all or more where so many are affordable."""

_JUDGES_MACS = 4e10
"""Multiply-adds to spend on the answers to them."""

_TRIAL_MACS = 1.6e11
"""Multiply-adds to spend on the fits of one trial, which decides how many images they see."""

_MACS = 7e11
"""Multiply-adds to spend on trials: about 30 s on two cores."""

_WALKS = 8
"""Runs of the network that take as long as a conversion: both networks walk through it, with products of windows, and
the new one twice again for the statistics of its norms."""

_FEWEST, _MOST = 3, 16

_TOO_LONG = 9e11
"""Multiply-adds that the fewest trials may cost: beyond, none is made."""

_TEMPERATURES, _SURE = (1.0, 2.0, 4.0), 0.9
"""The first one at which the largest share of an answer is at most so much on average, or the last one."""


def usual_trials(macs: int, images: int) -> int:
    """Plans to try in about 30 s on two cores; three at least, or one, which is taken untried, where these take long.

    Args:
        macs: of one image.
        images: that there are to calibrate with.
    """
    fitted, judges = _parts(macs, images)
    cost = max(1, macs * (_WALKS * fitted + judges))
    fewest = _FEWEST if _FEWEST * cost <= _TOO_LONG else 1
    return max(fewest, min(_MOST, int(_MACS / cost)))


def _parts(macs: int, images: int) -> tuple[int, int]:
    """Images to fit on, and to judge by."""
    afforded = max(_FEWEST_FITTED, min(_MOST_FITTED, int(_TRIAL_MACS / (_WALKS * max(1, macs)))))
    fitted = min(afforded, images - -(-images // 3))
    return fitted, min(images - fitted, _MOST_JUDGES, max(_FEWEST_FITTED, int(_JUDGES_MACS / max(1, macs))))


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
    if len(different) < 2 or len(calibration.images) < 2:
        return 0
    every = joined([calibration.images[start::3] for start in (1, 2, 0)])
    fitted, judging = _parts(plans[0].macs, len(every))
    judges, trial = every[fitted:][-judging:], replace(calibration, images=every[:fitted])
    sure = answers(model, judges)
    temperature = _softening(sure)
    wanted = [softened(part, temperature) for part in sure]
    scores = {}
    for place in sorted(different.values()):
        tried = convert(model, plans[place], calibration=trial, views=1)
        ours = answers(tried, judges, temperature=temperature)
        scores[place] = divergence_between(ours, wanted, len(judges))
    return min(scores, key=lambda place: scores[place])


def _softening(wanted: Sequence[Tensor]) -> float:
    """The temperature at which answers, log-probabilities, are not too sure."""
    for temperature in _TEMPERATURES[:-1]:
        largest = torch.cat([softened(part, temperature).amax(-1).flatten() for part in wanted])
        if float(largest.exp().mean()) <= _SURE:
            return temperature
    return _TEMPERATURES[-1]
