"""Polishing brings a converted network nearer to the dense one, and never farther from it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dprp.converter import (
    FixedRank,
    ModelError,
    PolishConfig,
    TrainingError,
    calibrate,
    convert,
    plan_ranks,
    polish,
    survey,
)
from dprp.converter.analysis.held_out import hold_out
from dprp.converter.conversion import matching, polishing
from dprp.converter.conversion.attached import low_rank_layers
from dprp.converter.conversion.matching import Pair
from dprp.converter.conversion.muon import orthogonal
from dprp.converter.conversion.polishing import usual_steps
from dprp.converter.conversion.step_sizes import longest_rate, matrix_step_size, step_size
from dprp.converter.conversion.views import views

QUICK = PolishConfig(steps=30, batch=20)


def _images() -> Tensor:
    return torch.randn(60, 3, 16, 16, generator=torch.Generator().manual_seed(1)).cumsum(-1) / 3


def _converted(dense: nn.Module, *, fitted: bool = False, rank: int = 1) -> nn.Module:
    """By the weights alone, which leaves much to polish, or fitted to the images."""
    layers = survey(dense, _images()[:1])
    plan = plan_ranks(layers, FixedRank(rank))
    assert len(plan.factored) >= 3
    return convert(dense, plan, calibration=calibrate(dense, layers, _images()) if fitted else None)


def _factors(model: nn.Module) -> list[nn.Parameter]:
    return [factor for layer in low_rank_layers(model).values() for factor in (layer.u, layer.v)]


def test_the_network_comes_nearer_and_the_dense_one_stays(residual: nn.Module) -> None:
    model = _converted(residual)
    before = copy.deepcopy(residual.state_dict())
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    model.s_frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
    found = polish(model, residual, _images(), QUICK)
    assert found.after < found.before
    assert found.kept > 0
    assert all(torch.equal(before[name], value) for name, value in residual.state_dict().items())
    assert all(torch.equal(statistics[name], value) for name, value in model.named_buffers())
    assert not model.s_frozen.requires_grad
    assert not any(module._forward_hooks for module in (*model.modules(), *residual.modules()))
    assert all(parameter.grad is None for parameter in residual.parameters())
    assert "times nearer" in str(found)


def test_the_same_seed_gives_the_same_network(residual: nn.Module) -> None:
    start = _converted(residual)
    ends = [copy.deepcopy(start) for _ in range(3)]
    for end, seed in zip(ends, (0, 0, 1), strict=True):
        polish(end, residual, _images(), PolishConfig(steps=30, batch=20, seed=seed))
    first, same, other = (torch.cat([p.detach().flatten() for p in end.parameters()]) for end in ends)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_what_goes_wrong_leaves_the_network_as_it_came(residual: nn.Module) -> None:
    model = _converted(residual)
    before = copy.deepcopy(model.state_dict())
    found = polish(model, residual, _images(), PolishConfig(steps=10, batch=20, rate=0.99))
    assert found.after <= found.before
    if not found.kept:
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert "no better" in str(found)

    def stop(step: int, _loss: float) -> None:
        if step == 2:
            raise KeyboardInterrupt

    model = _converted(residual)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        polish(model, residual, _images(), QUICK, on_step=stop)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_few_images_at_a_time_give_the_same_gradients(residual: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    start = _converted(residual).double()
    dense = copy.deepcopy(residual).double()
    ends = []
    for memory in (2**32, 1):
        monkeypatch.setattr(matching, "ACTIVATION_BYTES", memory)
        end = copy.deepcopy(start)
        polish(end, dense, _images().double(), PolishConfig(steps=1, batch=8, mirror=False))
        ends.append(torch.cat([p.detach().flatten() for p in end.parameters()]))
    # Variances are those of the images together or one by one, so the weights of the terms differ a little.
    torch.testing.assert_close(ends[0], ends[1], rtol=0.2, atol=0.02)


@pytest.mark.parametrize("wrap", [lambda y: {"out": y, "n": 3}, lambda y: (y, y.mean()), lambda y: [y]])
def test_answers_of_several_parts(residual: nn.Module, wrap: Callable[[Tensor], Any]) -> None:
    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Any:
            return wrap(self.inner(x.mul_(1.0)))  # writes to its input

    dense = Wrapped(residual).eval()
    images = _images()
    before = images.clone()
    found = polish(_converted(dense), dense, images, PolishConfig(steps=5))
    assert found.after <= found.before
    assert torch.equal(images, before)


def test_answers_are_a_tenth_of_the_loss_and_judge(residual: nn.Module) -> None:
    dense = nn.Sequential(residual, nn.Linear(10, 1)).eval()
    model = _converted(dense)
    head = model.get_submodule("1")
    assert isinstance(head, nn.Linear)  # nothing to gain there: it is no place
    pair = Pair(model, dense, _images(), 20)
    distance = pair.judge(_images())
    loss, apart = pair.loss(_images()), distance()
    with torch.no_grad():
        head.bias.add_(1.0)
    assert distance() > apart + 0.1
    assert pair.loss(_images()) - loss == pytest.approx(0.1 * (distance() - apart), rel=1e-3)


def test_maps_of_any_layout_run_channels_last(residual: nn.Module) -> None:
    fast: list[bool] = []

    def look(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        fast.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    model = _converted(residual)
    handle = residual.register_forward_pre_hook(look)
    polish(model, residual, _images(), PolishConfig(steps=4, batch=20))
    handle.remove()
    assert sum(fast) >= 4 + 1  # each step's, and the judges'
    assert fast[-4:] == [True] * 4


def test_activations_that_write_to_what_is_compared() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU6(inplace=True), nn.Conv2d(16, 16, 3), nn.ReLU(inplace=True)
    ).eval()
    model = convert(dense, plan_ranks(survey(dense, _images()[:1]), FixedRank(2)))
    found = polish(model, dense, _images(), QUICK)
    assert found.after < found.before


def test_a_rate_that_is_too_high_is_lowered(residual: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    made = polishing._optimizers
    monkeypatch.setattr(polishing, "_optimizers", lambda m, o, rate: rates.append(rate) or made(m, o, rate))  # type: ignore[func-returns-value]
    judged = iter([1.0, 1.4, 1.6, 0.5, 0.7, 0.8, float("nan"), 0.4, 0.5, 0.55, 0.5])
    monkeypatch.setattr(Pair, "judge", lambda *_: lambda: next(judged))
    found = polish(_converted(residual), residual, _images(), PolishConfig(40, 20, rate=0.1, paste=False))
    # Astray: half as far again as the best so far (1.6 of 1.0, 0.8 of 0.5), or no number.
    assert rates == pytest.approx([0.1 * 0.3**step for step in range(4)])
    assert (found.before, found.after, found.kept) == (1.0, 0.4, 28)


def test_the_rate_is_the_longest_that_does_not_raise_the_loss_of_a_batch(
    residual: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []
    made = polishing._optimizers
    monkeypatch.setattr(polishing, "_optimizers", lambda m, o, rate: rates.append(rate) or made(m, o, rate))  # type: ignore[func-returns-value]
    polish(_converted(residual, fitted=True, rank=6), residual, _images(), PolishConfig(1, 20))
    model = _converted(residual, fitted=True, rank=6)
    (batch,) = views(hold_out(_images())[0], 20, 1, torch.Generator().manual_seed(0), mirror=True, paste=True)
    pair = Pair(model, residual, _images(), 20)
    before = pair.backward(batch)
    factors = _factors(model)
    moved = [one for one in model.parameters() if one.grad is not None]
    ways = [
        matrix_step_size(one) * orthogonal([one.grad])[0]
        if any(one is factor for factor in factors)
        else step_size(one) * one.grad.sign()
        for one in moved
        if one.grad is not None
    ]

    def loss(rate: float) -> float:
        with torch.no_grad():
            for one, way in zip(moved, ways, strict=True):
                one.sub_(rate * way)
            found = pair.loss(batch)
            for one, way in zip(moved, ways, strict=True):
                one.add_(rate * way)
        return found

    rate = rates[0]
    assert 3e-5 < rate < 0.03
    assert loss(rate) <= before < loss(rate * 10**0.25)


@pytest.mark.parametrize(("side", "kinds", "peak"), [(16, ["Muon", "Adam"], 1), (65, ["Adam"], 2)])
def test_factors_move_by_muon_where_images_are_small(
    residual: nn.Module, monkeypatch: pytest.MonkeyPatch, side: int, kinds: list[str], peak: float
) -> None:
    found: list[torch.optim.Optimizer] = []
    rates: list[float] = []
    made = polishing._optimizers

    def look(*asked: Any) -> list[torch.optim.Optimizer]:
        found.extend(made(*asked))
        rates.append(asked[2])
        return found

    monkeypatch.setattr(polishing, "_optimizers", look)
    monkeypatch.setattr(polishing, "longest_rate", lambda *_: 1e-3)
    model = _converted(residual)
    polish(model, residual, torch.nn.functional.interpolate(_images(), side), PolishConfig(1, 20))
    assert [type(one).__name__ for one in found] == kinds
    assert rates == [peak * 1e-3]
    moved = [id(parameter) for one in found for group in one.param_groups for parameter in group["params"]]
    assert sorted(moved) == sorted(map(id, model.parameters()))
    if len(kinds) == 2:
        assert set(moved[: len(_factors(model))]) == set(map(id, _factors(model)))


def test_looking_for_a_rate_leaves_everything_as_it_was(residual: nn.Module) -> None:
    model = _converted(residual)
    before = copy.deepcopy(model.state_dict())
    pair = Pair(model, residual, _images(), 20)
    factors = _factors(model)
    others = [one for one in model.parameters() if not any(one is factor for factor in factors)]
    rate = longest_rate(pair, _images()[:20], factors, others)
    assert 3e-5 * (1 - 1e-9) <= rate <= 0.03
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_larger_networks_are_polished_in_fewer_steps(residual: nn.Module) -> None:
    assert usual_steps(residual, _images()) == 300
    assert usual_steps(residual, torch.zeros(2, 3, 1024, 1024)) < 300


def test_held_out_images_judge(residual: nn.Module) -> None:
    model = _converted(residual)
    others = _images().flip(0)[:20] * 2
    found = polish(model, residual, _images(), QUICK, held_out=others)
    # The same measure, taken anew: of the answers of the network that was kept.
    again = polish(model, residual, _images(), PolishConfig(steps=1, rate=1e-9), held_out=others)
    assert again.before == pytest.approx(found.after, rel=1e-4)
    assert found.after < found.before


def test_answers_that_have_no_classes(residual: nn.Module) -> None:
    dense = nn.Sequential(residual, nn.Linear(10, 1)).eval()
    with torch.no_grad():
        assert residual(_images()[:1]).shape == (1, 10)
    found = polish(_converted(dense, fitted=True), dense, _images(), QUICK)
    assert 0 < found.after < found.before < 2


def test_mistakes_are_one_sentence(residual: nn.Module) -> None:
    with pytest.raises(ModelError, match="has no low-rank layer that runs; convert it first"):
        polish(residual, residual, _images())
    with pytest.raises(ModelError, match="1 image is too few to polish on; give at least 2"):
        polish(_converted(residual), residual, _images()[:1])
    with pytest.raises(ModelError, match="no held-out images to judge by; give at least 1"):
        polish(_converted(residual), residual, _images(), held_out=_images()[:0])
    with pytest.raises(TrainingError, match="polish steps 0 is below 1"):
        PolishConfig(steps=0)
    with pytest.raises(TrainingError, match=r"polish rate nan is not in \(0, 1\)"):
        PolishConfig(rate=float("nan"))
