"""Ranges between two factors meet, and the function stays."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dprp.converter import FixedRank, LowRank, OptionError, convert, fuse, plan_ranks, survey
from dprp.converter.conversion.equalising import equalise
from dprp.converter.lowrank.decomposition import decompose
from dprp.converter.lowrank.forms import Form, full_rank, matricise
from dprp.converter.lowrank.layers import low_rank
from dprp.converter.lowrank.plain import FusedPair
from dprp.converter.lowrank.shapes import Plain, shape_of

from ..lowrank.geometries import called, layers

# torch says that an uneven "same" may copy the input; that is what the case is for.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")


def ranges(pair: FusedPair, x: Tensor) -> Tensor:
    between = pair[0](x)
    axis = pair.shape.channel_axis(between.dim())
    return between.abs().movedim(axis, 0).flatten(1).amax(1)


def _drawn(ranges: Tensor, part: float) -> Tensor:
    return ranges * (ranges.max() / ranges.clamp_min(ranges.max() / 1e4)) ** part


@torch.no_grad()
@given(layers(), st.sampled_from([0.25, 0.5, 1.0]))
@settings(max_examples=60, deadline=None)
def test_ranges_meet_and_the_function_stays(case: tuple[Plain, Tensor], part: float) -> None:
    layer, x = case
    shape = called(layer, x)
    rank = max(1, full_rank(shape, Form.CHANNEL) - 1)
    pair = low_rank(
        shape, Form.CHANNEL, decompose(matricise(layer.weight, shape, Form.CHANNEL), rank), layer.bias
    ).fuse()
    if not isinstance(pair, FusedPair):
        return
    before, old = pair(x), ranges(pair, x)
    equalise(pair, x, part)
    torch.testing.assert_close(pair(x), before, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(ranges(pair, x), _drawn(old, part), rtol=1e-5, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("how", [True, 0.5])
def test_fuse_does_it_in_a_network(residual: nn.Module, how: bool | float) -> None:
    images = torch.randn(20, 3, 16, 16)
    small = convert(residual, plan_ranks(survey(residual, images), FixedRank(4)))
    plain, equal = fuse(small, images), fuse(small, images, equalise=how)
    assert any(isinstance(module, LowRank) for module in small.modules())
    torch.testing.assert_close(equal(images), plain(images), rtol=1e-4, atol=1e-5)
    before, after = _seen(plain, images), _seen(equal, images)
    assert before
    assert before.keys() == after.keys()
    for name, old in before.items():
        torch.testing.assert_close(after[name], _drawn(old, float(how)), rtol=1e-3, atol=1e-6)


def _seen(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The largest value of each channel between two factors, over all calls of a pair."""
    found: dict[str, Tensor] = {}

    def look(name: str, output: Tensor) -> None:
        most = output.abs().movedim(1, 0).flatten(1).amax(1)
        found[name] = torch.maximum(most, found[name]) if name in found else most

    pairs = {name: module for name, module in model.named_modules() if isinstance(module, FusedPair)}
    handles = [
        pair[0].register_forward_hook(lambda _m, _i, output, name=name: look(name, output))
        for name, pair in pairs.items()
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return found


def test_other_parts_are_refused(residual: nn.Module) -> None:
    small = convert(residual, plan_ranks(survey(residual, torch.zeros(1, 3, 16, 16)), FixedRank(4)))
    for part in (1.5, -0.1, float("nan")):
        with pytest.raises(OptionError, match=r"equalise .* is not in 0\.\.1; give True for equal ranges, or a part"):
            fuse(small, torch.randn(2, 3, 16, 16), equalise=part)


def test_channels_without_a_range_stay(residual: nn.Module) -> None:
    shape = shape_of(nn.Linear(4, 4))
    pair = low_rank(shape, Form.CHANNEL, decompose(torch.eye(4), 1), torch.ones(4)).fuse()
    equalise(nn.Sequential(pair), torch.zeros(3, 4))
    assert all(bool(parameter.isfinite().all()) for parameter in pair.parameters())
