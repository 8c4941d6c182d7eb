"""Fusing keeps the function and leaves nothing of ours."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from dprp.converter import (
    Form,
    LowRank,
    MacBudget,
    ModelError,
    PlanError,
    RankRatio,
    convert,
    fold_batch_norms,
    fuse,
    plan_ranks,
    survey,
)

EXAMPLE = torch.zeros(1, 3, 16, 16)


@pytest.mark.parametrize("form", [Form.CHANNEL, Form.POINTWISE, Form.SPATIAL])
def test_fusing_keeps_the_function_and_leaves_plain_layers(residual: nn.Module, form: Form) -> None:
    plan = plan_ranks(survey(residual, EXAMPLE), RankRatio(0.2), forms=[form])
    assert plan.factored
    model = convert(residual, plan)
    fused = fuse(model)
    x = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, (LowRank, nn.BatchNorm2d)) for module in fused.modules())
    assert any(isinstance(module, LowRank) for module in model.modules())  # a copy
    assert fused.twice is fused.alias


def test_where_dense_is_cheaper_the_layer_becomes_one_again(residual: nn.Module) -> None:
    model = convert(residual, plan_ranks(survey(residual, EXAMPLE), RankRatio(1.0), forms=[Form.SPATIAL]))
    assert type(fuse(model).down) is nn.Conv2d


def test_scale_is_split_evenly() -> None:
    model = nn.Sequential(nn.Conv2d(16, 32, 3, bias=False)).eval()
    layers = survey(model, torch.zeros(1, 16, 8, 8))
    new = convert(model, plan_ranks(layers, MacBudget(0.4), rank_multiple=1, forms=[Form.CHANNEL]))
    first, second = fuse(new)[0]
    torch.testing.assert_close(
        first.weight.flatten(1).norm(dim=1), second.weight.flatten(1).norm(dim=0), rtol=1e-4, atol=1e-5
    )


def test_a_model_that_was_never_converted_needs_an_example(residual: nn.Module) -> None:
    with pytest.raises(PlanError, match="convert it first"):
        fuse(residual)
    fused = fuse(residual, EXAMPLE)
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(fused(x), residual(x), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())


class Peek(nn.Module):
    """A BatchNorm that must not be folded, since the convolution's output is read elsewhere too."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.norm, self.how = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), how

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = self.conv(x)
        if self.how == "sum":
            return self.norm(y) + y
        if self.how == "return":
            return self.norm(y), y
        if self.how == "twice":
            return self.norm(self.conv(x)) + self.norm(y)
        return self.norm(y.relu())


@pytest.mark.parametrize("how", ["sum", "return", "twice", "relu"])
def test_a_norm_whose_input_is_read_elsewhere_stays(how: str) -> None:
    model = Peek(how).eval()
    nn.init.normal_(model.norm.running_mean)
    x = torch.randn(2, 3, 6, 6)
    wanted = model(x)
    folded = fold_batch_norms(copy.deepcopy(model), x)
    assert isinstance(folded.norm, nn.BatchNorm2d)
    for ours, theirs in zip(folded(x), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_dense_layers_fold_too_and_control_flow_is_no_obstacle() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.norm = nn.Linear(5, 7), nn.BatchNorm1d(7)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.dense(x))
            return y if float(y.detach().sum()) > 0 else -y

    model = Branching().eval()
    nn.init.normal_(model.norm.running_mean)
    x = torch.randn(4, 5)
    folded = fold_batch_norms(copy.deepcopy(model), x)
    assert isinstance(folded.norm, nn.Identity)
    torch.testing.assert_close(folded(x), model(x))


def test_training_mode_is_refused() -> None:
    with pytest.raises(ModelError, match=r"training mode; call model\.eval\(\)"):
        fold_batch_norms(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train(), torch.zeros(1, 3, 8, 8))
