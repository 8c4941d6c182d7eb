"""Of several plans, the network decides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dprp.converter import (
    BLENDS,
    FixedRank,
    MacBudget,
    Sensitivity,
    calibrate,
    choose_plan,
    convert,
    foretell,
    plan_ranks,
    survey,
)
from dprp.converter.conversion import choosing as choosing_module


def _images() -> Tensor:
    return torch.randn(60, 3, 16, 16)


def test_the_plan_that_answers_most_like_the_dense_network_wins(residual: nn.Module) -> None:
    layers = survey(residual, _images()[:1])
    calibration = calibrate(residual, layers, _images())
    harsh = plan_ranks(layers, FixedRank(1))
    gentle = plan_ranks(layers, FixedRank(12), keep=["stem", "twice", "head"])
    before = {name: value.clone() for name, value in residual.state_dict().items()}
    assert choose_plan(residual, [harsh, gentle], calibration) == 1
    assert choose_plan(residual, [gentle, harsh, gentle], calibration) == 0
    assert all(torch.equal(before[name], value) for name, value in residual.state_dict().items())


def test_equal_plans_cost_no_trial(residual: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = survey(residual, _images()[:1])
    calibration = calibrate(residual, layers, _images())
    plan = plan_ranks(layers, FixedRank(4))
    seen = []
    monkeypatch.setattr(choosing_module, "convert", lambda *a, **k: seen.append(a) or convert(*a, **k))  # type: ignore
    assert choose_plan(residual, [plan, plan], calibration) == 0
    assert (
        choose_plan(residual, [plan, plan_ranks(layers, FixedRank(3))], calibrate(residual, layers, _images()[:1]))
        == 0
    )
    assert not seen


def test_blends_go_from_errors_to_nats(residual: nn.Module) -> None:
    layers = survey(residual, _images()[:1])
    losses = foretell(residual, layers, calibrate(residual, layers, _images()))
    for key in losses.errors:
        torch.testing.assert_close(losses.blend(0.0)[key], losses.errors[key])
        torch.testing.assert_close(losses.blend(1.0)[key], losses.nats[key])
        torch.testing.assert_close(losses.blend(0.5)[key], losses.distortions(Sensitivity.MIXED)[key])
    plans = [plan_ranks(layers, MacBudget(0.6), distortions=losses.blend(weight)) for weight in BLENDS]
    assert len(plans) == 3
