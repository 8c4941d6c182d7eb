"""What is found, what is replaced, and what is left alone and why."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from dprp.converter import (
    Form,
    LayerPlan,
    LowRank,
    ModelError,
    PlanError,
    RankRatio,
    convert,
    plan_of,
    plan_ranks,
    survey,
)
from dprp.converter.survey import Survey

EXAMPLE = torch.zeros(2, 3, 16, 16)


def reasons(layers: Survey) -> dict[str, str | None]:
    return {layer.name: layer.reason for layer in layers}


def test_layers_come_in_the_order_in_which_they_run_and_idle_ones_last(residual: nn.Module) -> None:
    layers = survey(residual, EXAMPLE)
    assert [layer.name for layer in layers] == ["stem", "down", "twice", "head", "idle"]
    assert layers.macs == sum(layer.macs for layer in layers)
    assert layers.params == sum(p.numel() for p in residual.parameters())
    twice = layers.layers[2]
    assert twice.aliases == ("alias",)
    assert twice.macs == 2 * 32 * 32 * 9 * 64  # both calls
    assert "forward did not run" in (reasons(layers)["idle"] or "")
    assert "twice" in str(layers)


def test_every_reason_to_stay() -> None:
    class Own(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    tied = nn.Linear(64, 64)
    other = nn.Linear(64, 64)
    other.weight = tied.weight
    hooked = nn.Conv2d(64, 64, 3, padding=1)
    hooked.register_forward_hook(lambda *_: None)
    model = nn.Sequential(
        Own(3, 64, 3, padding=1),
        weight_norm(nn.Conv2d(64, 64, 3, padding=1)),
        hooked,
        nn.Conv2d(64, 1, 1),
        nn.ConvTranspose2d(1, 64, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        tied,
        other,
    ).eval()
    found = reasons(survey(model, EXAMPLE))
    assert found["0"] == "Own computes something else than Conv2d"
    assert found["1"] == "its weight is parametrized; remove the parametrization first"
    assert found["2"] == "it has hooks that a replacement would lose; remove them first"
    assert found["3"] == "too small: no rank makes it cheaper"
    assert found["4"] == "ConvTranspose2d is not supported yet"
    assert found["7"] == "its weight is tied to 8"
    assert found["8"] == "its weight is tied to 7"


def test_attention_reads_its_projection_without_calling_it() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x, x, x, need_weights=False)[0]

    layers = survey(Attention().eval(), torch.randn(2, 5, 32))
    assert [layer.name for layer in layers] == ["inner.out_proj"]
    assert layers.layers[0].reason is not None


def test_the_model_is_left_as_it_was(residual: nn.Module) -> None:
    residual.down.train()
    before = copy.deepcopy(residual.state_dict())
    survey(residual, EXAMPLE)
    assert residual.down.training
    assert not residual.stem.training
    assert all(torch.equal(before[name], value) for name, value in residual.state_dict().items())
    assert not residual.stem._forward_hooks


@pytest.mark.parametrize("form", [Form.CHANNEL, Form.POINTWISE, Form.SPATIAL])
def test_full_rank_is_the_same_function_and_shared_layers_stay_shared(residual: nn.Module, form: Form) -> None:
    plan = plan_ranks(survey(residual, EXAMPLE), RankRatio(1.0), forms=[form])
    new = convert(residual, plan)
    x = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(new(x), residual(x), rtol=1e-4, atol=1e-5)
    assert new.twice is new.alias
    assert isinstance(new.twice, LowRank)
    assert isinstance(residual.twice, nn.Conv2d)
    assert type(new.idle) is nn.Conv2d


def test_in_place_and_gradients(residual: nn.Module) -> None:
    residual.down.weight.requires_grad_(False)
    plan = plan_ranks(survey(residual, EXAMPLE), RankRatio(1.0))
    assert convert(residual, plan, inplace=True) is residual
    assert not residual.get_parameter("down.u").requires_grad
    residual(torch.randn(2, 3, 16, 16)).sum().backward()
    gradient = residual.get_parameter("twice.s").grad
    assert gradient is not None
    assert bool((gradient != 0).any())
    assert residual.get_parameter("down.u").grad is None


def plan_with(model: nn.Module, **changes: object) -> LayerPlan:
    from dataclasses import replace

    plan = plan_ranks(survey(model, EXAMPLE), RankRatio(1.0), forms=[Form.SPATIAL])
    return replace(plan, layers=tuple(replace(p, **changes) if p.name == "down" else p for p in plan))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "gone"}, "gone: the model has no such layer; make the plan from this model"),
        ({"name": "norm"}, "norm: a BatchNorm2d cannot be factored; set form and rank to null"),
        ({"name": "stem2"}, "stem2: the model has no such layer"),
        ({"name": "alias"}, "alias: the plan is for a layer .* the model has"),
    ],
)
def test_a_plan_for_another_model_changes_nothing(
    residual: nn.Module, changes: dict[str, object], message: str
) -> None:
    plan = plan_with(residual, **changes)
    before = {name: type(module) for name, module in residual.named_modules()}
    with pytest.raises(PlanError, match=message):
        convert(residual, plan, inplace=True)
    assert {name: type(module) for name, module in residual.named_modules()} == before
    with pytest.raises(PlanError, match="the model has no plan; convert it first"):
        plan_of(residual)


def test_wrong_inputs_and_wrappers_are_refused(residual: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"cannot take an input of shape \(1, 1, 16, 16\).*--input CxHxW"):
        survey(residual, torch.zeros(1, 1, 16, 16))
    with pytest.raises(ModelError, match="give at least one sample"):
        survey(residual, torch.zeros(0, 3, 16, 16))
    with pytest.raises(ModelError, match=r"wrapped in DataParallel; pass model\.module instead"):
        survey(nn.DataParallel(residual), EXAMPLE)
    with pytest.raises(ModelError, match=r"wrapped in OptimizedModule; pass model\._orig_mod instead"):
        survey(torch.compile(residual), EXAMPLE)


def test_a_compressed_model_is_surveyed_as_such(residual: nn.Module) -> None:
    new = convert(residual, plan_ranks(survey(residual, EXAMPLE), RankRatio(0.3)))
    found = reasons(survey(new, EXAMPLE))
    assert any((reason or "").startswith("already factored") for reason in found.values())
