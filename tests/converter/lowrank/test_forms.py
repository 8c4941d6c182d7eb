"""Every form is exact at full rank, for every geometry, and costs what the formula says."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dprp.converter import Form, Unit, break_even_rank, convert, decompose, plan_ranks, survey
from dprp.converter.lowrank.costs import dense_cost, factored_cost
from dprp.converter.lowrank.forms import (
    factor_shapes,
    forms_for,
    forms_of,
    full_rank,
    matricise,
    matrix_size,
    rebuild,
)
from dprp.converter.lowrank.layers import LowRank, low_rank
from dprp.converter.lowrank.shapes import LayerShape, Map, Plain, shape_of
from dprp.converter.planning.policies import RankRatio
from dprp.export import onnx_macs, to_onnx

from .geometries import called, layers

# torch says that an uneven "same" may copy the input; that is what the case is for.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")


def factored(layer: Plain, shape: LayerShape, form: Form, rank: int) -> LowRank:
    return low_rank(shape, form, decompose(matricise(layer.weight, shape, form), rank), layer.bias).eval()


@given(layers(), st.sampled_from(Form))
@settings(max_examples=150, deadline=None)
def test_full_rank_is_the_layer_in_one_step_in_two_and_fused(case: tuple[Plain, Tensor], form: Form) -> None:
    layer, x = case
    shape = called(layer, x)
    new = factored(layer, shape, form, full_rank(shape, form))
    wanted = layer(x)
    first, second = new.fuse() if isinstance(new.fuse(), nn.Sequential) else (nn.Identity(), new.fuse())
    for given_by in (new(x), second(first(x)), two_steps(new, x)):
        torch.testing.assert_close(given_by, wanted, rtol=1e-9, atol=1e-9)


def two_steps(layer: LowRank, x: Tensor) -> Tensor:
    from dprp.converter.lowrank.layers import plain_layer

    first, second = factor_shapes(layer.shape, layer.form, layer.rank)
    inner, outer = layer.kernels()
    return plain_layer(second, outer, layer.bias)(plain_layer(first, inner, None)(x))


@given(layers(), st.sampled_from(Form))
@settings(max_examples=60, deadline=None)
def test_matricise_and_rebuild_are_inverse(case: tuple[Plain, Tensor], form: Form) -> None:
    layer, _ = case
    shape = shape_of(layer)
    matrix = matricise(layer.weight, shape, form)
    assert matrix.shape[-2:] == matrix_size(shape, form)
    assert torch.equal(rebuild(matrix, shape, form).reshape(layer.weight.shape), layer.weight)


@given(layers(), st.sampled_from(Form), st.data())
@settings(max_examples=60, deadline=None)
def test_macs_and_params_are_those_that_torch_counts(
    case: tuple[Plain, Tensor], form: Form, data: st.DataObject
) -> None:
    layer, x = case
    shape = called(layer, x)
    rank = data.draw(st.integers(1, full_rank(shape, form)))
    first, second = factor_shapes(shape, form, rank)
    from dprp.converter.lowrank.layers import plain_layer

    inner, outer = factored(layer, shape, form, rank).kernels()
    pair = nn.Sequential(plain_layer(first, inner, None), plain_layer(second, outer, layer.bias))
    # Padding in another mode is an operation of its own, which torch counts as nothing.
    with FlopCounterMode(display=False) as counter:
        pair(x[:1])
    assert factored_cost(shape, form, rank, Unit.MACS) == counter.get_total_flops() // 2
    assert factored_cost(shape, form, rank, Unit.PARAMS) == sum(p.numel() for p in pair.parameters())
    with FlopCounterMode(display=False) as counter:
        layer(x[:1])
    assert dense_cost(shape, Unit.MACS) == counter.get_total_flops() // 2
    assert dense_cost(shape, Unit.PARAMS) == sum(p.numel() for p in layer.parameters())


@given(layers(), st.sampled_from(Form))
@settings(max_examples=60, deadline=None)
def test_break_even_is_the_last_rank_that_saves(case: tuple[Plain, Tensor], form: Form) -> None:
    layer, x = case
    shape = called(layer, x)
    rank = break_even_rank(shape, form)

    def saves(r: int) -> bool:
        return all(factored_cost(shape, form, r, unit) < dense_cost(shape, unit) for unit in Unit)

    assert rank == 0 or saves(rank)
    assert rank == full_rank(shape, form) or not saves(rank + 1)


def test_costs_by_hand() -> None:
    # 16 -> 32 channels, 3 x 3, stride 2, 8 x 8 -> 4 x 4.
    shape = LayerShape("conv2d", 16, 32, (3, 3), (2, 2), ((1, 1), (1, 1)), bias=False, calls=(Map((8, 8), (4, 4)),))
    assert shape.macs == 32 * 16 * 9 * 16
    assert factored_cost(shape, Form.CHANNEL, 5, Unit.MACS) == 5 * (16 * 9 * 16 + 32 * 16)
    assert factored_cost(shape, Form.POINTWISE, 5, Unit.MACS) == 5 * (16 * 64 + 32 * 9 * 16)
    assert factored_cost(shape, Form.SPATIAL, 5, Unit.MACS) == 5 * (16 * 3 * 4 * 8 + 32 * 3 * 16)
    assert factored_cost(shape, Form.SPATIAL_T, 5, Unit.MACS) == 5 * (16 * 3 * 8 * 4 + 32 * 3 * 16)
    assert factored_cost(shape, Form.SPATIAL, 5, Unit.PARAMS) == 5 * (16 * 3 + 32 * 3)


def test_a_depthwise_layer_can_only_be_split_in_space() -> None:
    layer = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    shape = called(layer, torch.randn(1, 8, 6, 6))
    assert break_even_rank(shape, Form.CHANNEL) == 0
    assert break_even_rank(shape, Form.SPATIAL) == 1


def test_costs_by_hand_of_a_video_and_of_an_upsampling() -> None:
    # 4 -> 6 channels, 3 x 5 x 7, strided in space, 8 x 16 x 16 -> 8 x 8 x 8.
    video = LayerShape(
        "conv3d", 4, 6, (3, 5, 7), (1, 2, 2), ((1, 1), (2, 2), (3, 3)), (1, 1, 1), bias=False,
        calls=(Map((8, 16, 16), (8, 8, 8)),),
    )  # fmt: skip
    assert video.macs == 4 * 6 * 3 * 5 * 7 * 8 * 8 * 8
    assert factored_cost(video, Form.HEIGHT_WIDTH, 2, Unit.MACS) == 2 * (4 * 5 * 7 + 6 * 3) * 8 * 8 * 8
    assert factored_cost(video, Form.DEPTH, 2, Unit.MACS) == 2 * (4 * 3 * 8 * 16 * 16 + 6 * 5 * 7 * 8 * 8 * 8)
    # 4 -> 6 channels, 4 x 4, stride 2, 5 x 5 -> 10 x 10: every input pixel meets every weight.
    upsampling = LayerShape(
        "conv_transpose2d", 4, 6, (4, 4), (2, 2), ((1, 1), (1, 1)), bias=False, calls=(Map((5, 5), (10, 10)),)
    )
    assert upsampling.macs == 4 * 6 * 16 * 25
    assert factored_cost(upsampling, Form.CHANNEL, 2, Unit.MACS) == 2 * (4 * 16 * 25 + 6 * 100)
    assert factored_cost(upsampling, Form.POINTWISE, 2, Unit.MACS) == 2 * (4 * 25 + 6 * 16 * 25)
    assert factored_cost(upsampling, Form.SPATIAL, 2, Unit.MACS) == 2 * (4 * 4 * 25 + 6 * 4 * 50)


@given(layers(), st.data())
@settings(max_examples=60, deadline=None)
def test_squared_error_is_the_tail_sum(case: tuple[Plain, Tensor], data: st.DataObject) -> None:
    layer, _ = case
    shape = shape_of(layer)
    form = data.draw(st.sampled_from(forms_of(shape)))
    matrix = matricise(layer.weight, shape, form)
    rank = data.draw(st.integers(1, full_rank(shape, form)))
    lost = (factored(layer, shape, form, rank).weight.reshape(layer.weight.shape) - layer.weight).square().sum()
    tail = torch.linalg.svdvals(matrix.detach())[..., rank:].square().sum()
    torch.testing.assert_close(lost, tail, rtol=1e-8, atol=1e-12)


@given(layers(), st.sampled_from(Form))
@settings(max_examples=30, deadline=None)
def test_every_factor_learns(case: tuple[Plain, Tensor], form: Form) -> None:
    layer, x = case
    shape = shape_of(layer)
    new = factored(layer, shape, form, full_rank(shape, form))
    (new(x) - layer(x).detach() - 1).square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) and bool(p.grad.abs().sum() > 0) for p in new.parameters())


@given(layers(), st.sampled_from(Form))
@settings(max_examples=60, deadline=None)
def test_no_form_that_is_left_out_is_better(case: tuple[Plain, Tensor], form: Form) -> None:
    layer, x = case
    shape = called(layer, x)
    offered = forms_for(shape)
    assert set(offered) <= set(forms_of(shape)) or max(shape.kernel) == 1
    assert len({(matrix_size(shape, own), own.taken(len(shape.kernel))) for own in offered}) == len(offered)
    cost = factored_cost(shape, form, 1, Unit.MACS)
    like = [own for own in offered if matrix_size(shape, own) == matrix_size(shape, form)]
    assert any(factored_cost(shape, own, 1, Unit.MACS) <= cost for own in like)


def test_forms_that_differ() -> None:
    video = shape_of(nn.Conv3d(4, 4, 3)).with_calls((Map((8, 16, 16), (8, 16, 16)),))
    assert set(forms_for(video)) == {*Form} - {Form.SPATIAL_T, Form.DEPTH_WIDTH}
    assert forms_for(shape_of(nn.Conv3d(4, 4, (3, 1, 1)))) == (Form.CHANNEL, Form.POINTWISE)
    assert forms_for(shape_of(nn.Conv1d(4, 4, 5))) == (Form.CHANNEL, Form.POINTWISE)
    small_first = shape_of(nn.ConvTranspose2d(4, 4, 1, stride=2)).with_calls((Map((4, 4), (7, 7)),))
    assert forms_for(small_first) == (Form.POINTWISE,)
    assert forms_for(shape_of(nn.Linear(4, 4))) == (Form.CHANNEL,)
    assert forms_for(shape_of(nn.Conv2d(4, 4, 1))) == (Form.CHANNEL,)
    assert forms_for(shape_of(nn.Conv2d(4, 4, (1, 3)))) == (Form.CHANNEL, Form.POINTWISE)
    assert Form.SPATIAL_T not in forms_for(shape_of(nn.Conv2d(4, 4, 3)))
    assert Form.SPATIAL_T in forms_for(shape_of(nn.Conv2d(4, 4, 3, stride=2)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_of_any_float_type_keep_it(dtype: torch.dtype) -> None:
    layer = nn.Sequential(nn.Conv2d(4, 8, 3, dtype=dtype), nn.Flatten(), nn.Linear(8, 6, dtype=dtype))
    x = torch.randn(2, 4, 3, 3, dtype=dtype)
    wide = survey(layer.eval(), x)
    # Layers this small have no rank that saves, so the plan is made by hand.
    from dprp.converter import LayerPlan, Plan

    plans = tuple(LayerPlan(found.name, found.params, found.macs, found.shape, Form.CHANNEL, 6) for found in wide)
    new = convert(layer, Plan(plans, wide.params, wide.macs, wide.input_shape))
    assert all(parameter.dtype == dtype for parameter in new.parameters())
    assert new(x).dtype == dtype


@pytest.mark.parametrize("form", [Form.CHANNEL, Form.POINTWISE, Form.SPATIAL])
def test_resnet20_at_full_rank_is_resnet20(resnet20: nn.Module, cifar: dict[str, Tensor], form: Form) -> None:
    images = cifar["test"][:32]
    new = convert(resnet20, plan_ranks(survey(resnet20, images), RankRatio(1.0), forms=[form]))
    assert sum(isinstance(module, LowRank) for module in new.modules()) == 20
    with torch.no_grad():
        wanted = resnet20(images)
        assert float((new(images) - wanted).abs().max() / wanted.abs().max()) < 1e-4


@pytest.mark.parametrize("form", [Form.CHANNEL, Form.POINTWISE, Form.SPATIAL])
def test_resnet18_at_full_rank_is_resnet18(form: Form) -> None:
    from dprp.models import build

    model = build("resnet18")
    images = torch.randn(1, 3, 64, 64)
    new = convert(model, plan_ranks(survey(model, images), RankRatio(1.0), forms=[form]))
    assert sum(isinstance(module, LowRank) for module in new.modules()) == 21
    with torch.no_grad():
        wanted = model(images)
        assert float((new(images) - wanted).abs().max() / wanted.abs().max()) < 1e-4


def test_a_rank_cannot_exceed_the_matrix() -> None:
    from dprp.converter import LayerError

    with pytest.raises(LayerError, match=r"rank 5 is not in 1\.\.4 \(matrix 4 x 9\)"):
        decompose(torch.randn(4, 9), 5)
    with pytest.raises(LayerError, match=r"rank 0 is not in 1\.\.4"):
        decompose(torch.randn(4, 9), 0)


def test_geometry_reads_back_from_json() -> None:
    shape = called(nn.Conv2d(4, 8, (3, 2), padding="same", groups=2), torch.randn(1, 4, 5, 6))
    assert LayerShape.from_dict(shape.to_dict()) == shape
    assert math.prod(shape.weight) + 8 == shape.params


@pytest.mark.parametrize(
    ("layer", "sizes", "form"),
    [
        (nn.Linear(12, 10), (3,), Form.CHANNEL),
        (nn.Conv1d(8, 12, 5, stride=2, padding=2), (21,), Form.CHANNEL),
        (nn.Conv2d(8, 12, (3, 2), padding="same", dilation=2, groups=2), (9, 10), Form.SPATIAL),
        (nn.Conv3d(6, 8, 3, stride=(1, 2, 2), padding=1, bias=False), (5, 8, 8), Form.HEIGHT_WIDTH),
        (nn.ConvTranspose1d(8, 12, 4, stride=2, padding=1, output_padding=1), (11,), Form.POINTWISE),
        (nn.ConvTranspose2d(8, 12, (4, 3), stride=2, padding=1, output_padding=(0, 1)), (7, 6), Form.SPATIAL_T),
        (nn.ConvTranspose2d(8, 12, 3, groups=2), (7, 6), Form.CHANNEL),
        (nn.ConvTranspose3d(4, 6, 3, stride=2), (3, 4, 4), Form.DEPTH),
    ],
    ids=str,
)
def test_the_file_of_each_kind_computes_the_same_and_costs_what_the_formula_says(
    layer: Plain, sizes: tuple[int, ...], form: Form, tmp_path: Path
) -> None:
    shape = shape_of(layer)
    x = torch.randn(2, *sizes, shape.inputs) if shape.linear else torch.randn(2, shape.inputs, *sizes)
    rank = 2
    low = factored(layer, called(layer, x), form, rank)
    plain = low.fuse().eval()
    assert isinstance(plain, nn.Sequential)
    torch.testing.assert_close(plain(x), low(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain.weight.reshape(layer.weight.shape), low.weight.reshape(layer.weight.shape))
    assert to_onnx(plain, x, tmp_path / "layer.onnx").ok
    assert onnx_macs(tmp_path / "layer.onnx") == factored_cost(low.shape, form, rank, Unit.MACS)
