"""What is replaced, and what is left as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from dprp.converter import (
    FixedRank,
    Form,
    LayerPlan,
    LowRank,
    ModelError,
    PlanError,
    RankRatio,
    Unit,
    calibrate,
    convert,
    fuse,
    plan_of,
    plan_ranks,
    survey,
)
from dprp.converter.conversion import converting as converting_module

EXAMPLE = torch.zeros(2, 3, 16, 16)


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
    assert any((layer.reason or "").startswith("already factored") for layer in survey(new, EXAMPLE))


class Odd(nn.Module):
    """Layers called in every way but the usual one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.each = nn.Conv2d(24, 24, 3, padding=1)
        self.named = nn.Conv2d(24, 24, 3, padding=1)
        self.table = nn.Parameter(torch.randn(1, 24, 5, 5))
        self.constant = nn.Conv2d(24, 24, 3, padding=1)
        self.rows = nn.Linear(24, 24)
        self.head = nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.stack([self.each(image) for image in x])  # images without a batch
        x = self.named(input=x).relu()
        x = x + self.constant(self.table).mean((2, 3), keepdim=True)  # does not carry the batch
        x = x + self.rows(self.table.flatten(2).mT).mean(1)[..., None, None]
        return self.head(input=x.mean((2, 3)))


@pytest.mark.parametrize("samples", [1, 2, 4])
def test_costs_are_those_of_one_sample_however_layers_are_called(samples: int) -> None:
    model = Odd().eval()
    layers = survey(model, torch.zeros(samples, 3, 8, 8))
    macs = {layer.name: layer.macs for layer in layers}
    conv = 24 * 24 * 9
    assert macs == {
        "stem": 24 * 3 * 9 * 64,
        "each": conv * 64,
        "named": conv * 64,
        "constant": conv * 25,
        "rows": 24 * 24 * 25,
        "head": 24 * 24,
    }
    assert all(layer.shape is not None and layer.shape.macs == layer.macs for layer in layers)
    plan = plan_ranks(layers, RankRatio(0.25))
    assert {layer.name for layer in plan.factored.values()} == set(macs)
    assert all(0 < layer.cost(Unit.MACS) < layer.macs for layer in plan)
    new = convert(model, plan)
    assert new(torch.randn(3, 3, 8, 8)).shape == (3, 24)
    assert survey(new, torch.zeros(samples, 3, 8, 8)).macs == plan.total(Unit.MACS)


@pytest.mark.parametrize("inplace", [False, True])
def test_layers_out_of_reach_are_named_and_nothing_changes(inplace: bool) -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen = nn.Conv2d(3, 24, 3)
            self.hidden = nn.Conv2d(24, 24, 3)
            self.steps = [self.hidden]

        def forward(self, x: Tensor) -> Tensor:
            return self.steps[0](self.seen(x)).mean((2, 3))

    model = Listed().eval()
    before = copy.deepcopy(model.state_dict())
    layers = survey(model, EXAMPLE)
    with pytest.raises(ModelError, match=r"hidden: replaced, but the model goes on using the dense layer"):
        convert(model, plan_ranks(layers, RankRatio(0.3)), inplace=inplace)
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == {
        name: list(value.shape) for name, value in before.items()
    }
    assert not hasattr(model, "_dprp_plan")
    new = convert(model, plan_ranks(layers, RankRatio(0.3), keep=["hidden"]))
    assert isinstance(new.seen, LowRank)


def test_in_place_is_what_a_copy_is(residual: nn.Module) -> None:
    torch.manual_seed(3)
    images = torch.randn(40, 3, 16, 16)
    with torch.no_grad():
        residual.norm.running_mean.add_(1.0)
    layers = survey(residual, EXAMPLE)
    calibration = calibrate(residual, layers, images)
    plan = plan_ranks(layers, RankRatio(0.1), energies=calibration.energies)
    new = convert(residual, plan, calibration=calibration)
    same = convert(residual, plan, calibration=calibration, inplace=True)
    assert same is residual
    for name, value in new.state_dict().items():
        torch.testing.assert_close(same.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_replacements_show_what_the_layers_they_replace_show(residual: nn.Module) -> None:
    new = convert(residual, plan_ranks(survey(residual, EXAMPLE), RankRatio(0.3)))
    for model in (new, fuse(new)):
        for name, dense in (("down", residual.down), ("head", residual.head)):
            ours = model.get_submodule(name)
            assert type(ours) is not type(dense)
            shown = [key for key in dense.__constants__ if key != "output_padding"]
            assert {key: getattr(ours, key) for key in shown} == {key: getattr(dense, key) for key in shown}
            assert ours.weight.shape == dense.weight.shape
            assert ours.bias.shape == dense.bias.shape
    for name in ("twice", "head"):  # without a norm that the fused weight would hold too
        torch.testing.assert_close(
            fuse(new).get_submodule(name).weight, new.get_submodule(name).weight, rtol=1e-4, atol=1e-5
        )


def test_a_transformer_is_fitted_on_images() -> None:
    """Its layers hand their weights to one fused operation where nobody watches; calibration has to see them run."""
    model = nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(64, 4, 96, batch_first=True), nn.Flatten()).eval()
    images = torch.randn(16, 5, 8, 8)
    layers = survey(model, images)
    calibration = calibrate(model, layers, images)
    plan = plan_ranks(layers, RankRatio(0.3), energies=calibration.energies)
    projections = {f"1.self_attn.{name}" for name in ("in_proj", "out_proj")}
    assert set(plan.factored) == {"1.linear1", "1.linear2", *projections}
    with torch.no_grad():
        lost = [
            float((fuse(convert(model, plan, calibration=data))(images) - model(images)).square().sum())
            for data in (calibration, None)
        ]
    assert lost[0] < 0.9 * lost[1]
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_transformer_layer_that_reads_weights_of_its_children_converts_and_fuses(batch_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 96, batch_first=batch_first)
    model = nn.Sequential(layer, nn.Linear(32, 32)).eval()
    x = torch.randn(3, 7, 32)
    layers = survey(model, x)
    full, cut = (convert(model, plan_ranks(layers, RankRatio(ratio))) for ratio in (1.0, 0.3))
    assert isinstance(full[0].linear1, LowRank)
    with torch.no_grad():
        torch.testing.assert_close(full(x), model(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fuse(cut, x)(x), cut(x), rtol=1e-4, atol=1e-5)


def _without_bias() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 24, 3, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 36, 5)
    ).eval()


def test_the_norm_behind_a_layer_takes_up_its_mean() -> None:
    model, images = _without_bias(), 5 + torch.randn(60, 8, 8, 8).cumsum(1)
    layers = survey(model, images[:1])
    plan = plan_ranks(layers, FixedRank(3), keep=["4"])
    new = convert(model, plan, calibration=calibrate(model, layers, images))
    with torch.no_grad():
        wanted, found = (network[:2](images) for network in (model, new))
    torch.testing.assert_close(
        found.mean((0, 2, 3)), wanted.mean((0, 2, 3)), rtol=1e-3, atol=1e-3 * float(wanted.std())
    )
    assert float((found - wanted).square().mean()) < 0.3 * float(wanted.var())


def test_statistics_of_norms_are_put_back_when_something_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = _without_bias(), torch.randn(20, 8, 8, 8)
    layers = survey(model, images[:1])
    calibration = calibrate(model, layers, images)
    before = copy.deepcopy(model.state_dict())

    def fails(*_: object, **__: object) -> bool:
        raise ModelError("out of memory")

    monkeypatch.setattr(converting_module, "reestimate", fails)
    with pytest.raises(ModelError, match="out of memory"):
        convert(model, plan_ranks(layers, FixedRank(2)), calibration=calibration, inplace=True)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(before[name], after[name]) for name in before)
