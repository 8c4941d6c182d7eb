"""The second factor, fitted to what the layer really gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dprp.converter import Form
from dprp.converter.lowrank.decomposition import Factors, best_pair, decompose, regularised
from dprp.converter.lowrank.forms import forms_for, matricise, rebuild
from dprp.converter.lowrank.layers import convolve, low_rank
from dprp.converter.lowrank.moments import pair_moments
from dprp.converter.lowrank.refitting import refit_second, second_moments
from dprp.converter.lowrank.regression import RIDGES, Split, nearest_map
from dprp.converter.lowrank.shapes import Plain, shape_of
from dprp.converter.lowrank.sweeping import Target, held_weights, refitted_weights


def _layers() -> list[Plain]:
    """The same ones, whatever drew random numbers before."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [
            nn.Conv2d(4, 6, 3, padding=1),
            nn.Conv2d(4, 8, 3, padding=1, stride=2, groups=2),
            nn.Conv2d(4, 6, (3, 2), dilation=(1, 2), padding_mode="circular", padding="same"),
            nn.Conv2d(6, 6, 3, padding=1, groups=6),
            nn.Conv3d(3, 4, (3, 2, 3), padding=(1, 0, 1)),
            nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
            nn.ConvTranspose2d(4, 6, (4, 3), groups=2),
        ]


LAYERS = _layers()


def an_input(layer: Plain, images: int) -> Tensor:
    return torch.randn(images, layer.in_channels, *(9, 9, 5)[: len(layer.kernel_size)]).cumsum(-1)


def without_bias(layer: Plain, x: Tensor) -> Tensor:
    shape = shape_of(layer)
    return convolve(x, layer.weight, None, shape)


def _refitted(
    factors: Factors, layer: Plain, form: Form, z: Tensor, wanted: Tensor, *, centred: bool = False
) -> Factors:
    """On images of which none judges."""
    shape = shape_of(layer)
    moments = second_moments(factors, shape, form, z, wanted)
    if moments is None:
        return factors
    return refit_second(factors, shape, form, Split(moments, None, 0.0), centred=centred)


def _error(layer: Plain, form: Form, factors: Factors, x: Tensor) -> float:
    ours = low_rank(shape_of(layer), form, Factors(*(part.float() for part in factors)), layer.bias)
    return float((ours(x) - layer(x)).square().sum())


@torch.no_grad()
@settings(max_examples=20, deadline=None)
@given(st.sampled_from(LAYERS), st.sampled_from(list(Form)), st.integers(1, 3), st.integers(0, 99))
def test_it_never_gives_more_error_than_before(layer: Plain, form: Form, rank: int, seed: int) -> None:
    shape = shape_of(layer)
    if form not in forms_for(shape):
        return
    torch.manual_seed(seed)
    x = an_input(layer, 6)
    matrix = matricise(layer.weight, shape, form).double()
    rank = min(rank, *matrix.shape[-2:])
    factors = decompose(matrix, rank, regularised(pair_moments(x, x, shape, form).second))
    clean = without_bias(layer, x)
    after = _refitted(factors, layer, form, x, clean)
    assert after.v.shape == factors.v.shape
    assert _error(layer, form, after, x) <= 1.001 * _error(layer, form, factors, x) + 1e-3


@torch.no_grad()
def test_it_makes_up_for_what_was_smeared_across_columns() -> None:
    """One kernel column at a time cannot undo it; the whole window can, in part."""
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 12, 3, padding=1, bias=False)
    x = torch.randn(16, 3, 12, 12)
    z = x + 0.5 * x.roll(1, -1)
    shape = shape_of(layer)
    moments = pair_moments(x, z, shape, Form.SPATIAL)
    matrix = matricise(layer.weight, shape, Form.SPATIAL).double()
    whole = nearest_map(matrix, moments.through(matrix), 1e-6)
    factors = decompose(whole, 8, moments.ridged(1e-6))
    wanted = layer(x)

    def error(some: Factors) -> float:
        ours = low_rank(shape, Form.SPATIAL, Factors(*(part.float() for part in some)), None)
        return float((ours(z) - wanted).square().sum())

    assert error(_refitted(factors, layer, Form.SPATIAL, z, wanted)) < 0.8 * error(factors)


@torch.no_grad()
@pytest.mark.parametrize("form", [Form.POINTWISE, Form.SPATIAL])
def test_dead_inputs_change_nothing(form: Form) -> None:
    layer = LAYERS[0]
    shape = shape_of(layer)
    factors = decompose(matricise(layer.weight, shape, form).double(), 2)
    x = torch.zeros(2, 4, 9, 9)
    after = _refitted(factors, layer, form, x, torch.zeros_like(layer(x)), centred=True)
    torch.testing.assert_close(
        rebuild(after.product(), shape, form), rebuild(factors.product(), shape, form), rtol=1e-6, atol=1e-8
    )


@torch.no_grad()
@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("form", list(Form))
def test_in_closed_form_it_is_what_data_gives(layer: Plain, form: Form) -> None:
    shape = shape_of(layer)
    if form not in forms_for(shape):
        return
    x = an_input(layer, 8)
    matrix = matricise(layer.weight, shape, form).double()
    factors = decompose(matrix, min(2, *matrix.shape[-2:]), pair_moments(x, x, shape, form).ridged(1e-6))
    clean = without_bias(layer, x)
    fitted_on_data = _refitted(factors, layer, form, x, clean)
    target = Target.of_layer(layer.weight, shape, pair_moments(x, x, shape, Form.CHANNEL).ridged(1e-9))
    ours = refitted_weights(factors.v, [factors.rank], layer.weight, shape, form, target)[0].float()
    theirs = rebuild(fitted_on_data.product(), shape, form).float()

    def error(weight: Tensor) -> float:
        return float((convolve(x, weight, None, shape) - clean).square().sum())

    assert error(ours) == pytest.approx(error(theirs), rel=1e-2, abs=1e-3 * float(clean.square().sum()))


@torch.no_grad()
@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("form", [form for form in Form if form is not Form.CHANNEL])
def test_held_to_what_it_was_it_is_foretold_to_the_digit(layer: Plain, form: Form) -> None:
    shape = shape_of(layer)
    if form not in forms_for(shape):
        return
    x = an_input(layer, 8)
    matrix = matricise(layer.weight, shape, form).double()
    moment, highest = pair_moments(x, x, shape, form).ridged(1e-4), min(3, *matrix.shape[-2:])
    pair = best_pair(matrix, highest, moment)
    target = Target.of_layer(layer.weight, shape, pair_moments(x, x, shape, Form.CHANNEL).second)
    factors = decompose(matrix, highest, moment)
    theirs = rebuild(_refitted(factors, layer, form, x, without_bias(layer, x)).product(), shape, form)
    ours = held_weights(pair, [highest], layer.weight, shape, form, target, RIDGES[0])[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(layer.weight.abs().max()))
    lower = [held_weights(pair, ranks, layer.weight, shape, form, target, 1e6)[0] for ranks in ([1], [1, highest])]
    closed = rebuild(decompose(matrix, 1, moment).product(), shape, form)
    for one in lower:
        torch.testing.assert_close(one, closed, rtol=1e-3, atol=1e-4 * float(layer.weight.abs().max()))
