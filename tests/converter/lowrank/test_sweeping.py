"""Both factors of a convolution in turn, downhill in the layer's true error."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dprp.converter import Form
from dprp.converter.lowrank.decomposition import Factors, decompose
from dprp.converter.lowrank.forms import factor_shapes, forms_for, full_rank, matricise, rebuild
from dprp.converter.lowrank.layers import low_rank
from dprp.converter.lowrank.moments import answer_moments, pair_moments
from dprp.converter.lowrank.reaching import in_windows, onto_windows, tap_by_tap, taps_of, through_first
from dprp.converter.lowrank.regression import Split
from dprp.converter.lowrank.shapes import LayerShape, Plain, shape_of
from dprp.converter.lowrank.sweeping import Sweeper, Target, refitted_weights, sweepable, swept, swept_weights

from .test_refitting import LAYERS, an_input, without_bias

SPLITS = [form for form in Form if form is not Form.CHANNEL]


def _started(layer: Plain, form: Form, rank: int, x: Tensor) -> Factors:
    shape = shape_of(layer)
    matrix = matricise(layer.weight, shape, form).double()
    return decompose(matrix, min(rank, full_rank(shape, form)), pair_moments(x, x, shape, form).ridged(1e-6))


def _refitted(factors: Factors, layer: Plain, form: Form, moment: Tensor) -> Tensor:
    """With the second factor that is best for the first, what sweeps begin with."""
    shape = shape_of(layer)
    target = Target.of_layer(layer.weight, shape, moment)
    return refitted_weights(factors.v, [factors.rank], layer.weight, shape, form, target)[0]


def _judged(layer: Plain, x: Tensor) -> Split:
    """The images judge themselves, so that what is found can only be better on them."""
    moments = answer_moments(without_bias(layer, x), x, shape_of(layer))
    return Split(moments, moments, 0.5)


def _error(layer: Plain, made: Tensor, x: Tensor, metric: Tensor | None = None) -> float:
    shape = shape_of(layer)
    moment = pair_moments(x, x, shape, Form.CHANNEL).second.reshape(shape.groups, -1, made.numel() // shape.outputs)
    off = matricise(layer.weight.double() - made, shape, Form.CHANNEL).reshape(shape.groups, -1, moment.shape[-1])
    felt = off if metric is None else metric @ off
    return float((felt @ moment * off).sum())


def _weight(factors: Factors, shape: LayerShape, form: Form) -> Tensor:
    return rebuild(factors.product(), shape, form)


@torch.no_grad()
@settings(max_examples=40, deadline=None)
@given(st.sampled_from(LAYERS), st.sampled_from(SPLITS), st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_nothing_is_worse_than_the_second_factor_alone(
    layer: Plain, form: Form, rank: int, felt: bool, seed: int
) -> None:
    shape = shape_of(layer)
    if form not in forms_for(shape):
        return
    torch.manual_seed(seed)
    x = an_input(layer, 6)
    outputs = shape.outputs // shape.groups
    mixed = torch.randn(shape.groups, outputs, outputs, dtype=torch.float64)
    metric = mixed @ mixed.mT + 0.1 * torch.eye(outputs, dtype=torch.float64) if felt else None
    factors = _started(layer, form, rank, x)
    moment = pair_moments(x, x, shape, Form.CHANNEL).second
    moment = moment + 1e-2 * moment.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * torch.eye(moment.shape[-1])
    before = _refitted(factors, layer, form, moment)
    split = _judged(layer, x)
    found = swept(factors, layer.weight, shape, form, split, centred=False, metric=metric)
    assert found.u.shape == factors.u.shape
    assert found.v.shape == factors.v.shape
    if all(torch.equal(*pair) for pair in zip(found, factors, strict=True)):
        return  # the second factor is fitted next, as before
    assert _error(layer, _weight(found, shape, form), x, metric) <= 1.01 * _error(layer, before, x, metric) + 1e-9


@torch.no_grad()
def test_it_takes_a_tenth_of_the_error_from_an_edge_detector() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 16, 3, padding=1)
    layer.weight -= layer.weight.mean((2, 3), keepdim=True)
    x = an_input(layer, 12)
    shape = shape_of(layer)
    moment = pair_moments(x, x, shape, Form.CHANNEL).second
    for form in (Form.SPATIAL, Form.POINTWISE):
        factors = _started(layer, form, 4, x)
        before = _refitted(factors, layer, form, moment)
        found = swept(factors, layer.weight, shape, form, _judged(layer, x), centred=False)
        assert _error(layer, _weight(found, shape, form), x) < 0.9 * _error(layer, before, x)


@torch.no_grad()
def test_in_closed_form_it_is_what_plans_foretell() -> None:
    layer = LAYERS[0]
    shape = shape_of(layer)
    x = an_input(layer, 12)
    factors = _started(layer, Form.SPATIAL, 3, x)
    split = _judged(layer, x)
    moment = split.fitted.second
    moment = moment + 1e-2 * moment.diagonal().mean() * torch.eye(len(moment))
    target = Target.of_layer(layer.weight, shape, moment)
    foretold = swept_weights(factors.v, [factors.rank], layer.weight, shape, Form.SPATIAL, target)[0]
    found = swept(factors, layer.weight, shape, Form.SPATIAL, split, centred=False)
    true, said = _error(layer, _weight(found, shape, Form.SPATIAL), x), _error(layer, foretold, x)
    before = _error(layer, _refitted(factors, layer, Form.SPATIAL, moment), x)
    assert true <= 1.01 * said  # which is one sweep of three
    assert said - true < 0.5 * (before - true)


@torch.no_grad()
def test_other_images_decide() -> None:
    """Fitted on next to nothing, what came in stays."""
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 16, 3, padding=1)
    shape = shape_of(layer)
    x = an_input(layer, 12)
    few = torch.zeros_like(x[:1])
    few[..., 4, 4] = torch.randn(8)
    fitted, judged = (answer_moments(without_bias(layer, part), part, shape) for part in (few, x))
    factors = _started(layer, Form.SPATIAL, 4, x)
    moment = judged.second
    found = swept(factors, layer.weight, shape, Form.SPATIAL, Split(fitted, judged, 0.5), centred=False)
    best = _refitted(factors, layer, Form.SPATIAL, moment)
    after = _refitted(found, layer, Form.SPATIAL, moment)
    assert _error(layer, after, x) < 1.2 * _error(layer, best, x)


@torch.no_grad()
@settings(max_examples=30, deadline=None)
@given(st.sampled_from(LAYERS), st.sampled_from(SPLITS), st.integers(1, 3), st.integers(0, 99))
def test_taps_lay_the_first_factor_on_whole_windows(layer: Plain, form: Form, rank: int, seed: int) -> None:
    shape = shape_of(layer)
    if form not in forms_for(shape):
        return
    torch.manual_seed(seed)
    matrix = matricise(layer.weight.double(), shape, form)
    matrix = matrix.reshape(shape.groups, *matrix.shape[-2:])
    u = torch.randn(shape.groups, matrix.shape[1], rank, dtype=torch.float64)
    v = torch.randn(shape.groups, rank, matrix.shape[2], dtype=torch.float64)
    _, second = factor_shapes(shape, form, rank)
    outer = matricise(rebuild(u, second, Form.POINTWISE), second, Form.CHANNEL).reshape(
        shape.groups, -1, rank * math.prod(second.kernel)
    )
    whole = onto_windows(outer, v)
    wanted = matricise(rebuild(u @ v, shape, form), shape, Form.CHANNEL).reshape(whole.shape)
    torch.testing.assert_close(in_windows(whole, shape, form), wanted)
    torch.testing.assert_close(tap_by_tap(wanted, shape, form), whole)
    torch.testing.assert_close(wanted[..., taps_of(shape, form).flatten()], whole)
    other = torch.randn_like(whole)
    torch.testing.assert_close((whole * other).sum(), (outer * through_first(other, v)).sum())


@torch.no_grad()
@pytest.mark.parametrize("below_zero", [0, 16])
def test_second_factors_of_all_ranks_solve_their_equations(below_zero: int) -> None:
    """Also of a moment that is not positive definite, as rounding may leave it."""
    layer = nn.Conv2d(4, 6, 3, padding=1)
    shape, form = shape_of(layer), Form.SPATIAL
    torch.manual_seed(0)
    v = torch.randn(1, 5, 12, dtype=torch.float64)
    basis, _ = torch.linalg.qr(torch.randn(36, 36, dtype=torch.float64))
    values = torch.linspace(1, 2, 36, dtype=torch.float64)
    values[:below_zero] *= -1
    sweeper = Sweeper(layer.weight, shape, form, None)
    target = sweeper.tap_by_tap(Target.of_layer(layer.weight, shape, basis * values @ basis.mT))
    for rank in (2, 5):
        (made,) = sweeper.made_of(v, target, [rank])
        again = sweeper.made_of(v, target, [2, 5])[(2, 5).index(rank)]
        torch.testing.assert_close(made, again)
        left = through_first(made @ target.second - target.cross, v[:, :rank])
        assert float(left.abs().max()) < 1e-6 * float(target.cross.abs().max())


@torch.no_grad()
def test_dead_inputs_stay_finite() -> None:
    layer = LAYERS[0]
    shape = shape_of(layer)
    x = torch.zeros(2, 4, 9, 9)
    factors = decompose(matricise(layer.weight, shape, Form.SPATIAL).double(), 2)
    found = swept(factors, layer.weight, shape, Form.SPATIAL, _judged(layer, x), centred=True)
    ours = low_rank(shape, Form.SPATIAL, Factors(*(part.float() for part in found)), layer.bias)
    assert bool(ours(an_input(layer, 2)).isfinite().all())


@torch.no_grad()
def test_where_no_images_judge_nothing_is_swept() -> None:
    layer = LAYERS[0]
    x = an_input(layer, 6)
    factors = _started(layer, Form.SPATIAL, 2, x)
    unjudged = Split(_judged(layer, x).fitted, None, 0.0)
    assert swept(factors, layer.weight, shape_of(layer), Form.SPATIAL, unjudged, centred=False) is factors


def test_where_there_is_nothing_to_gain() -> None:
    assert sweepable(shape_of(LAYERS[0]), Form.SPATIAL)
    assert not sweepable(shape_of(LAYERS[0]), Form.CHANNEL)
    assert not sweepable(shape_of(nn.Conv2d(512, 8, 3)), Form.SPATIAL)
    assert not sweepable(shape_of(nn.Linear(4, 4)), Form.CHANNEL)
