"""Every form is exact at full rank, for every geometry, and costs what the formula says."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dprp.converter import Form, Unit, break_even_rank, convert, decompose, plan_ranks, survey
from dprp.converter.lowrank.costs import dense_cost, factored_cost
from dprp.converter.lowrank.forms import factor_shapes, forms_for, full_rank, matricise, matrix_size, rebuild
from dprp.converter.lowrank.layers import LowRank, low_rank
from dprp.converter.lowrank.shapes import LayerShape, Map, Padding, shape_of
from dprp.converter.planning.policies import RankRatio

# torch says that an uneven "same" may copy the input; that is what the case is for.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv2d, Tensor]:
    """A convolution of any geometry, in float64, and an input for it."""
    groups = draw(st.sampled_from([1, 1, 1, 2, 4]))
    inputs, outputs = groups * draw(st.integers(1, 4)), groups * draw(st.integers(1, 4))
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    padding: str | tuple[int, int] = draw(
        st.sampled_from(["same", "valid"]) | st.tuples(st.integers(0, 2), st.integers(0, 2))
    )
    stride = (1, 1) if padding == "same" else (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    layer = nn.Conv2d(
        inputs,
        outputs,
        kernel,
        stride,
        padding,
        dilation,
        groups,
        draw(st.booleans()),
        draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
        dtype=torch.float64,
    )
    x = torch.randn(2, inputs, draw(st.integers(8, 11)), draw(st.integers(8, 11)), dtype=torch.float64)
    return layer, x


def called(layer: nn.Conv2d, x: Tensor) -> LayerShape:
    y = layer(x)
    return shape_of(layer).with_calls((Map(x.shape[2], x.shape[3], y.shape[2], y.shape[3]),))


def factored(layer: nn.Conv2d | nn.Linear, shape: LayerShape, form: Form, rank: int) -> LowRank:
    return low_rank(shape, form, decompose(matricise(layer.weight, shape, form), rank), layer.bias).eval()


@given(convolutions(), st.sampled_from(Form))
@settings(max_examples=150, deadline=None)
def test_full_rank_is_the_layer_in_one_step_in_two_and_fused(case: tuple[nn.Conv2d, Tensor], form: Form) -> None:
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


@given(convolutions(), st.sampled_from(Form))
@settings(max_examples=60, deadline=None)
def test_matricise_and_rebuild_are_inverse(case: tuple[nn.Conv2d, Tensor], form: Form) -> None:
    layer, _ = case
    shape = shape_of(layer)
    matrix = matricise(layer.weight, shape, form)
    assert matrix.shape[-2:] == matrix_size(shape, form)
    assert torch.equal(rebuild(matrix, shape, form), layer.weight)


@given(convolutions(), st.sampled_from(Form), st.data())
@settings(max_examples=60, deadline=None)
def test_macs_and_params_are_those_that_torch_counts(
    case: tuple[nn.Conv2d, Tensor], form: Form, data: st.DataObject
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


@given(convolutions(), st.sampled_from(Form))
@settings(max_examples=60, deadline=None)
def test_break_even_is_the_last_rank_that_saves(case: tuple[nn.Conv2d, Tensor], form: Form) -> None:
    layer, x = case
    shape = called(layer, x)
    rank = break_even_rank(shape, form)

    def saves(r: int) -> bool:
        return all(factored_cost(shape, form, r, unit) < dense_cost(shape, unit) for unit in Unit)

    assert rank == 0 or saves(rank)
    assert rank == full_rank(shape, form) or not saves(rank + 1)


def test_costs_by_hand() -> None:
    # 16 -> 32 channels, 3 x 3, stride 2, 8 x 8 -> 4 x 4.
    shape = LayerShape("conv2d", 16, 32, (3, 3), (2, 2), Padding(1, 1, 1, 1), bias=False, calls=(Map(8, 8, 4, 4),))
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


def test_forms_that_differ() -> None:
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
