"""Moments and fits are taken in full precision, whatever the network runs in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dprp.converter import (
    Form,
    MacBudget,
    RankRatio,
    Sensitivity,
    calibrate,
    convert,
    plan_ranks,
    sensitivities,
    survey,
)
from dprp.converter.analysis import calibration as calibration_module

EXAMPLE = torch.zeros(1, 3, 16, 16)


@pytest.mark.parametrize("outside", [False, True])
def test_autocast_changes_no_moment(residual: nn.Module, outside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Inside(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.net(x)

    images = torch.randn(40, 3, 16, 16)
    model = residual if outside else Inside(residual)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=outside):
        layers = survey(model, EXAMPLE)
        calibration = calibrate(model, layers, images)
        plan = plan_ranks(layers, RankRatio(0.4), energies=calibration.energies)
        new = convert(model, plan, calibration=calibration)
        sensitivities(model, layers, calibration, Sensitivity.MIXED)
        assert (new(images).float() - residual(images).float()).norm() < 0.5 * residual(images).float().norm()
        # Slopes of the answers have the precision that the network runs in; moments alone do not.
        monkeypatch.setattr(calibration_module, "output_metrics", lambda *_: {})
        found = calibrate(model, layers, images).energies["stem" if outside else "net.stem", Form.SPATIAL]
    wanted = calibrate(residual, survey(residual, EXAMPLE), images).energies["stem", Form.SPATIAL]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert all(parameter.dtype == torch.float32 for parameter in new.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_networks_of_another_precision(residual: nn.Module, dtype: torch.dtype) -> None:
    model = residual.to(dtype)
    images = torch.randn(30, 3, 16, 16, dtype=dtype)
    layers = survey(model, EXAMPLE.to(dtype))
    calibration = calibrate(model, layers, images)
    new = convert(model, plan_ranks(layers, MacBudget(0.7), energies=calibration.energies), calibration=calibration)
    assert {parameter.dtype for parameter in new.parameters()} == {dtype}
    assert bool(new(images).isfinite().all())
