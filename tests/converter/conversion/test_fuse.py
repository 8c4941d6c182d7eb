"""Fusing keeps the function and leaves nothing of ours."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dprp.converter import (
    Form,
    LowRank,
    MacBudget,
    PlanError,
    RankRatio,
    calibrate,
    convert,
    fuse,
    plan_ranks,
    survey,
)
from dprp.converter.conversion.attached import images_of

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


def test_a_converted_network_does_not_keep_all_images_alive(residual: nn.Module) -> None:
    layers, images = survey(residual, EXAMPLE), torch.randn(8, 3, 16, 16)
    model = convert(residual, plan_ranks(layers, RankRatio(0.5)), calibration=calibrate(residual, layers, images))
    kept = images_of(model)
    assert kept is not None
    torch.testing.assert_close(kept, images[: len(kept)])
    assert kept.untyped_storage().nbytes() == kept.nbytes


def test_the_images_of_the_calibration_prove_the_fold(residual: nn.Module) -> None:
    """Noise takes one branch here, images the other, in which the norm is another one."""

    class TwoNorms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bright, self.dark = nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24), nn.BatchNorm2d(24)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.bright(y) if float(x.detach().mean()) > 3 else self.dark(y)

    model = TwoNorms().eval()
    nn.init.normal_(model.bright.bias)
    nn.init.normal_(model.dark.bias)
    images = torch.rand(6, 3, 12, 12) + 4
    layers = survey(model, images[:1])
    new = convert(model, plan_ranks(layers, RankRatio(0.3)), calibration=calibrate(model, layers, images))
    fused = fuse(new)
    for x in (images, images - 4):
        torch.testing.assert_close(fused(x), new(x), rtol=1e-4, atol=1e-4)
    assert not hasattr(fused, "_dprp_images")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_networks_of_another_precision_fuse(residual: nn.Module, dtype: torch.dtype) -> None:
    model = convert(residual, plan_ranks(survey(residual, EXAMPLE), RankRatio(0.2))).to(dtype)
    fused = fuse(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert {parameter.dtype for parameter in fused.parameters()} == {dtype}
