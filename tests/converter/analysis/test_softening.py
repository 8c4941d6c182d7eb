"""Answers are softened as far as they are sure."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dprp.converter import ModelError
from dprp.converter.analysis.softening import softening, softening_of

SCORES = torch.tensor([[0.0, 1.0, 2.0], [2.0, -1.0, 0.0]])


@pytest.mark.parametrize(("sure", "temperature"), [(1.0, 1.0), (2.0, 2.0), (4.0, 4.0), (50.0, 4.0)])
def test_they_are_softened_as_far_as_they_are_sure(sure: float, temperature: float) -> None:
    assert softening([(sure * SCORES).log_softmax(-1)]) == temperature
    assert softening_of(nn.Identity(), sure * SCORES) == temperature


def test_no_more_than_64_images_are_looked_at_from_all_over() -> None:
    seen: list[int] = []

    class Looking(nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            seen.extend(rows[:, 0].int().tolist())
            return rows.float()

    rows = torch.arange(130.0)[:, None].expand(130, 3)
    assert softening_of(Looking(), rows) == 1.0
    assert len(seen) <= 64
    assert min(seen) == 0
    assert max(seen) > 120


def test_a_network_without_scores_has_none() -> None:
    class Counts(nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return rows.argmax(-1)

    with pytest.raises(ModelError, match="without a tensor of floating point"):
        softening_of(Counts(), SCORES)
