"""Images that a layer answers to strongly count less in its fit, and do not decide it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dprp.converter import FixedRank, calibrate, convert, plan_ranks, survey
from dprp.converter.conversion import twins
from dprp.converter.conversion.weighing import Power, image_weights, power


def _answers() -> Tensor:
    """(N, channels, height, width), of which the third is ten times as strong."""
    answers = torch.randn(50, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    answers[2] *= 10
    return answers


def test_weights_are_lower_for_strong_answers_alone() -> None:
    (found,) = image_weights([power(_answers(), 0, 50, linear=False)])
    assert float(found[2]) < 0.1
    assert bool((found[torch.arange(50) != 2] > 1.2).all())
    alike = torch.randn(8, 6, 6).expand(5, 8, 6, 6)
    torch.testing.assert_close(image_weights([power(alike, 0, 5, linear=False)])[0], torch.ones(5))


def test_means_and_scales_of_channels_do_not_matter() -> None:
    answers = _answers()
    other = 0.1 * torch.arange(1, 9).reshape(-1, 1, 1) * answers + torch.arange(8).reshape(-1, 1, 1)
    (found,), (wanted,) = (image_weights([power(some, 0, 50, linear=False)]) for some in (other, answers))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert torch.equal(image_weights([Power(*torch.zeros(2, 3, 2).double())])[0], torch.full((3,), 2.0))


def test_batches_and_layouts_do_not_matter() -> None:
    answers = _answers()
    (wanted,) = image_weights([power(answers, 0, 50, linear=False)])
    parts = [power(part, 0, len(part), linear=False) for part in answers.split(20)]
    torch.testing.assert_close(torch.cat(image_weights(parts)), wanted)
    tokens = answers.flatten(2).mT  # (N, tokens, features)
    for rows, axis in ((tokens, 0), (tokens.transpose(0, 1), 1), (tokens.reshape(-1, 8), 0)):
        torch.testing.assert_close(image_weights([power(rows, axis, 50, linear=True)])[0], wanted)


def test_a_few_loud_images_do_not_decide_a_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(6, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 1), nn.ReLU(), nn.Conv2d(24, 12, 1))
    dense = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 5)).eval()
    images, others = (torch.randn(90, 6, 10, 10, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    images, others = images.cumsum(-1) / 3, others.cumsum(-1) / 3
    images[:6] = 12 * torch.randn(6, 6, 10, 10, generator=torch.Generator().manual_seed(2))
    survey_ = survey(dense, images[:1])
    plan = plan_ranks(survey_, FixedRank(4), keep=("8",))
    calibration = calibrate(dense, survey_, images)

    def error() -> float:
        with torch.no_grad():
            made = convert(dense, plan, calibration=calibration)
            return float((made(others) - dense(others)).square().mean())

    weighted = error()
    monkeypatch.setattr(twins, "image_weights", lambda powers: [torch.ones(len(batch.mean)) for batch in powers])
    assert weighted < 0.8 * error()
