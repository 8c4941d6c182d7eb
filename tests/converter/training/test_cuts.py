"""Cuts: the losses of factors, and what a cut leaves of function, momentum and schedule."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dprp.converter import (
    LowRank,
    RankPenalty,
    Unit,
    convert,
    decompose,
    survey,
)
from dprp.converter.conversion.attached import low_rank_layers
from dprp.converter.lowrank.forms import Form, matricise
from dprp.converter.lowrank.layers import LowRankConv
from dprp.converter.lowrank.shapes import shape_of
from dprp.converter.training.cuts import scheduled
from dprp.converter.training.losses import distillation, orthogonality, rank_penalty
from dprp.converter.training.pruner import RankPruner, cut_layer


def layer_of_rank(rank: int, groups: int = 1) -> LowRank:
    conv = nn.Conv2d(8, 12, 3, groups=groups, bias=False)
    shape = shape_of(conv)
    factors = decompose(matricise(conv.weight, shape, Form.CHANNEL), rank)
    return LowRankConv(shape, Form.CHANNEL, factors, None)


def test_losses_by_hand() -> None:
    layer = layer_of_rank(4)
    assert float(orthogonality([layer]).detach()) == pytest.approx(0, abs=1e-9)
    with torch.no_grad():
        layer.u.mul_(2.0)  # u^T u = 4 I
    assert float(orthogonality([layer]).detach()) == pytest.approx(4 * 9 / 16, rel=1e-4)
    with torch.no_grad():
        layer.s.copy_(torch.tensor([3.0, -4.0, 0.0, 0.0]))
    named = {"a": layer}
    assert float(rank_penalty(named, {"a": 2.0}, RankPenalty.NUCLEAR).detach()) == pytest.approx(2 * 7 / 4)
    assert float(rank_penalty(named, {"a": 2.0}, RankPenalty.HOYER).detach()) == pytest.approx(2 * (7 / 5 - 1))
    logits = torch.randn(5, 10)
    assert float(distillation(logits, logits, 4.0)) == pytest.approx(0, abs=1e-6)
    assert float(distillation(logits, logits.flip(1), 4.0)) > 0


@given(st.sampled_from([1, 2]), st.integers(1, 6), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_making_factors_an_svd_again_keeps_function_and_momentum(groups: int, rank: int, seed: int) -> None:
    torch.manual_seed(seed)
    layer = layer_of_rank(min(rank, 12 // groups), groups).double()
    layer.s = nn.Parameter(layer.s[..., torch.randperm(layer.rank)])  # no longer sorted
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    x, y = torch.randn(2, 8, 6, 6, dtype=torch.float64), torch.randn(2, 12, 4, 4, dtype=torch.float64)
    (layer(x) - y).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    before, weight = layer(x).detach(), layer.weight.detach()
    cut_layer(layer, layer.rank, None, optimizer)
    torch.testing.assert_close(layer(x), before, rtol=1e-8, atol=1e-9)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in layer.parameters()}
    for parameter in layer.parameters():
        assert optimizer.state[parameter]["momentum_buffer"].shape == parameter.shape
    optimizer.param_groups[0]["lr"] = 1e-3
    (layer(x) - y).square().mean().backward()
    optimizer.step()
    assert not torch.equal(layer.weight.detach(), weight)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_state_goes_with_its_directions(kind: type[torch.optim.Optimizer]) -> None:
    layer = layer_of_rank(6).double()
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {"amsgrad": True}
    optimizer = kind(layer.parameters(), lr=1e-12, **options)
    layer(torch.randn(2, 8, 6, 6, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    old = {name: dict(optimizer.state[getattr(layer, name)]) for name in ("u", "s", "v")}
    cut_layer(layer, 4, None, optimizer)
    for name, kept in (("u", (slice(None), slice(4))), ("s", (slice(4),)), ("v", (slice(4), slice(None)))):
        state = optimizer.state[getattr(layer, name)]
        assert state.keys() == old[name].keys()
        for key, value in state.items():
            if value is not None and value.dim():
                # The factors were an SVD already: a direction may only have changed its sign.
                torch.testing.assert_close(value.abs(), old[name][key][kept].abs(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("steps", "error"), [(1, 1e-6), (12, 0.1)])
@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_momentum_after_a_cut_is_that_of_the_dense_gradient(
    groups: int, weighed: bool, steps: int, error: float
) -> None:
    """Momenta of u, s and v are views of the dense weight's, after a cut too: exactly for one gradient, and as
    nearly as the factors stood still for several."""
    torch.manual_seed(5)
    layer = layer_of_rank(6, groups).double()
    with torch.no_grad():  # far from a true SVD, as training leaves it
        mixed = torch.eye(6) + 0.3 * torch.randn(6, 6)
        layer.v.copy_(torch.linalg.solve(mixed.double(), layer.v))
        layer.u.copy_(layer.u * layer.s.unsqueeze(-2) @ mixed.double() / layer.s.unsqueeze(-2))
    decay = 0.9
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-5, momentum=decay)
    x, y = torch.randn(16, 8, 6, 6, dtype=torch.float64), torch.randn(16, 12, 4, 4, dtype=torch.float64)
    dense = torch.zeros(layer.shape.weight, dtype=torch.float64)
    for step in range(steps):
        weight = layer.weight.detach().requires_grad_()
        torch.nn.functional.conv2d(x, weight, groups=groups).sub(y).square().sum().div(50).backward()
        assert weight.grad is not None
        dense = decay * dense + weight.grad
        optimizer.zero_grad()
        layer(x).sub(y).square().sum().div(50).backward()
        if step == steps - 1:
            optimizer.param_groups[0]["lr"] = 0.0  # the last gradient is one of these very factors
        optimizer.step()
    columns = layer.v.shape[-1]
    root = torch.randn(columns, columns, dtype=torch.float64)
    moment = root @ root.mT + torch.eye(columns, dtype=torch.float64)
    cut_layer(layer, 4, moment if weighed else None, optimizer)
    matrix = matricise(dense, layer.shape, Form.CHANNEL)
    wanted = {
        "u": matrix @ layer.v.mT * layer.s.unsqueeze(-2),
        "s": torch.diagonal(layer.u.mT @ matrix @ layer.v.mT, dim1=-2, dim2=-1),
        "v": layer.s.unsqueeze(-1) * (layer.u.mT @ matrix),
    }
    for name, view in wanted.items():
        carried = optimizer.state[getattr(layer, name)]["momentum_buffer"]
        assert float((carried - view).detach().norm() / view.detach().norm()) < error, name


def test_a_zero_singular_value_has_the_gradients_of_the_dense_weight() -> None:
    layer = layer_of_rank(6)
    with torch.no_grad():
        layer.s[2:] = torch.tensor([0.0, -0.5, 1e-9, 0.0])
    x = torch.randn(64, 8, 6, 6)
    assert len(x) <= layer.steps.most_samples
    found = torch.autograd.grad(layer(x).square().sum(), (layer.u, layer.s, layer.v))
    answers = torch.nn.functional.conv2d(x, layer.weight)
    wanted = torch.autograd.grad(answers.square().sum(), (layer.u, layer.s, layer.v))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-2)


def test_the_cut_follows_the_inputs_where_they_are_known() -> None:
    conv = nn.Conv2d(4, 4, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0])).reshape(4, 4, 1, 1))
    model = nn.Sequential(conv)
    layers = survey(model.eval(), torch.zeros(1, 4, 2, 2))
    from dprp.converter import LayerPlan, Plan

    found = layers.layers[0]
    plan = Plan(
        (LayerPlan("0", found.params, found.macs, found.shape, Form.CHANNEL, 4),),
        layers.params,
        layers.macs,
        (4, 2, 2),
    )
    loud = torch.diag(torch.tensor([0.0, 0.0, 1.0, 100.0])) + 1e-6 * torch.eye(4)
    for moments, kept in ((None, {0, 1}), ({("0", Form.CHANNEL): loud}, {2, 3})):
        new = convert(model, plan)
        pruner = RankPruner(new, plan, None, rank_multiple=1, moments=moments)
        pruner.to_limit(1.0, Unit.MACS)
        weight = low_rank_layers(new)["0"].weight.detach().reshape(4, 4)
        assert {int(row) for row in weight.abs().sum(1).topk(2).indices} == kept


def test_the_schedule_starts_at_the_start_and_ends_on_the_target() -> None:
    assert scheduled(0.9, 0.5, 0.0) == pytest.approx(0.9)
    assert scheduled(0.9, 0.5, 1.0) == pytest.approx(0.5)
    assert scheduled(0.9, 0.5, 2.0) == pytest.approx(0.5)
    assert scheduled(0.9, 0.5, 0.5) == pytest.approx(0.55)
