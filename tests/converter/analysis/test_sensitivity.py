"""What a layer's loss costs the network, measured and read off."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dprp.converter import MacBudget, Sensitivity, calibrate, convert, evaluate, plan_ranks, sensitivities, survey
from dprp.converter.analysis.curves import read
from dprp.converter.analysis.divergence import divergence
from dprp.converter.lowrank.forms import Form


def test_reading_between_and_beyond_the_points() -> None:
    curve = [(0.01, 0.001), (0.1, 0.1)]
    found = read(curve, np.array([0.0, 0.001, 0.01, 10**-1.5, 0.1, 0.2]))
    np.testing.assert_allclose(found, [0.0, 0.0001, 0.001, 0.01, 0.1, 0.2], rtol=1e-9)
    np.testing.assert_allclose(read([], np.array([0.5])), [0.5])


def test_a_layer_that_nobody_listens_to_costs_nothing() -> None:
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heard, self.unheard = nn.Conv2d(3, 24, 3), nn.Conv2d(3, 24, 3)
            self.head = nn.Linear(24, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.heard(x) + 1e-6 * self.unheard(x)).relu().mean((2, 3)) * 5)

    model = Deaf().eval()
    images = torch.randn(64, 3, 10, 10)
    layers = survey(model, images[:1])
    calibration = calibrate(model, layers, images)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen: list[str] = []
    nats = sensitivities(model, layers, calibration, Sensitivity.KL, on_layer=seen.append)
    energy = sensitivities(model, layers, calibration, Sensitivity.ENERGY)
    mixed = sensitivities(model, layers, calibration, Sensitivity.MIXED)
    assert seen == ["heard", "unheard", "head"]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for key in energy:
        assert nats[key].shape == energy[key].shape
        assert bool((nats[key].diff() <= 1e-12).all())  # falls with the rank
        assert bool((mixed[key].diff() <= 1e-12).all())
    heard, unheard = (float(nats[name, Form.CHANNEL][2]) for name in ("heard", "unheard"))
    assert unheard < 1e-3 * heard
    # Energy sees no difference; the plan that listens cuts where nobody does.
    plan = plan_ranks(
        layers, MacBudget(0.7), energies=calibration.energies, distortions=nats, rank_multiple=1, forms=[Form.CHANNEL]
    )
    by_name = {layer.name: layer for layer in plan}
    assert by_name["unheard"].rank is not None
    assert (by_name["heard"].rank or 99) > by_name["unheard"].rank


def test_the_curve_is_what_cutting_the_layer_does(residual: nn.Module) -> None:
    images = torch.randn(40, 3, 16, 16)
    layers = survey(residual, images[:1])
    calibration = calibrate(residual, layers, images)
    nats = sensitivities(residual, layers, calibration, Sensitivity.KL)
    # Keep everything but one layer dense, and see what its cut does to the answers.
    plan = plan_ranks(layers, MacBudget(0.8), keep=["stem", "twice", "head"], rank_multiple=1, forms=[Form.SPATIAL])
    cut = plan.factored["down"]
    assert cut.form is not None
    assert cut.rank is not None
    measured = divergence(convert(residual, plan, calibration=calibration, refit=False), residual, images)
    predicted = float(nats["down", cut.form][cut.rank])
    assert predicted / 4 < measured < predicted * 4


def test_mixed_plans_keep_more_accuracy_than_energy_alone(resnet20: nn.Module, cifar: dict[str, Tensor]) -> None:
    layers = survey(resnet20, cifar["train"][:1])
    calibration = calibrate(resnet20, layers, cifar["train"])
    top1 = {}
    for kind in (Sensitivity.ENERGY, Sensitivity.MIXED):
        lost = sensitivities(resnet20, layers, calibration, kind)
        plan = plan_ranks(layers, MacBudget(0.75), energies=calibration.energies, distortions=lost)
        model = convert(resnet20, plan, calibration=calibration)
        top1[kind] = evaluate(model, [(cifar["test"], cifar["test_labels"])]).top1
    assert top1[Sensitivity.MIXED] > 89.0
    assert top1[Sensitivity.MIXED] == pytest.approx(top1[Sensitivity.ENERGY], abs=3.0)
