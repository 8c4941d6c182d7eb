"""Patches are what the layer multiplies with its weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dprp.converter import Form
from dprp.converter.lowrank import moments as moments_module
from dprp.converter.lowrank import patches as patches_module
from dprp.converter.lowrank.forms import factor_shapes, matricise
from dprp.converter.lowrank.moments import answer_moments, pair_moments
from dprp.converter.lowrank.patches import patches
from dprp.converter.lowrank.reaching import first_moments
from dprp.converter.lowrank.shapes import Plain, shape_of

LAYERS = [
    nn.Conv2d(4, 6, 3, padding=1),
    nn.Conv2d(4, 6, (3, 2), stride=(2, 1), dilation=(1, 2)),
    nn.Conv2d(4, 6, 3, padding=1, groups=2, padding_mode="reflect"),
    nn.Conv2d(4, 4, 3, padding=1, groups=4),
    nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"),
    nn.Conv1d(4, 6, 5, stride=2, padding=2, padding_mode="replicate"),
    nn.Conv3d(4, 6, (3, 2, 1), stride=(1, 2, 1), padding=(1, 0, 0), groups=2),
    nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1),
    nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 3), padding=(2, 0), output_padding=(1, 2), groups=2),
    nn.ConvTranspose2d(4, 6, 3, dilation=2, output_padding=1),
    nn.ConvTranspose3d(4, 6, 2, stride=2),
]


def an_input(layer: Plain, images: int) -> torch.Tensor:
    return torch.randn(images, 4, *(7, 8, 6)[: len(layer.kernel_size)])


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_weight_times_patches_is_the_layer(layer: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches_module, "CHUNK_BYTES", 1)  # one image at a time
    x = an_input(layer, 3)
    shape = shape_of(layer)
    matrix = matricise(layer.weight, shape, Form.CHANNEL)
    weight = matrix.reshape(shape.groups, shape.outputs // shape.groups, -1)
    parts = [weight @ columns for columns in patches(x, shape)]
    assert len(parts) == 3
    wanted = layer(x) - layer.bias.reshape(-1, *[1] * len(shape.kernel))
    ours = torch.stack([part.reshape(-1, *wanted.shape[2:]) for part in parts])
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("form", list(Form))
def test_moments_predict_the_first_factors_output(layer: Plain, form: Form) -> None:
    x = an_input(layer, 5)
    shape = shape_of(layer)
    first, _ = factor_shapes(shape, form, 2)
    kernel = matricise(torch.randn(first.weight), first, Form.CHANNEL)
    moment = pair_moments(x, x, shape, form).second
    rows = kernel.reshape(shape.groups, 2, -1).double()
    predicted = (rows @ moment.reshape(shape.groups, rows.shape[-1], -1) @ rows.mT).diagonal(dim1=-2, dim2=-1)
    columns = torch.cat(list(patches(x, first)), -1)
    torch.testing.assert_close(predicted, (rows.float() @ columns).square().mean(-1).double(), rtol=1e-4, atol=1e-6)
    assert matricise(layer.weight, shape, form).shape[-1] == moment.shape[-1]


@torch.no_grad()
@pytest.mark.parametrize("layer", [*LAYERS, nn.Linear(6, 3)], ids=str)
@pytest.mark.parametrize("far", [0.0, 30.0])
def test_answers_are_inputs_through_the_weight(layer: Plain, far: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks of one image; a bias is no part of what is compared."""
    monkeypatch.setattr(patches_module, "CHUNK_BYTES", 1)
    monkeypatch.setattr(moments_module, "CHUNK_BYTES", 1)
    shape = shape_of(layer)
    x = far + (torch.randn(3, 5, 6) if shape.linear else an_input(layer, 3))
    z = x + 0.3 * torch.randn_like(x)
    matrix = matricise(layer.weight, shape, Form.CHANNEL).double()
    wanted = pair_moments(x, z, shape, Form.CHANNEL).through(matrix).centred()
    found = answer_moments(layer(x), z, shape).centred()
    for part in ("cross", "second", "mean_z"):
        ours, theirs = getattr(found, part), getattr(wanted, part)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
    bias = layer.bias.reshape(wanted.mean_x.shape)
    torch.testing.assert_close(found.mean_x, wanted.mean_x + bias, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("layer", [*LAYERS, nn.Linear(6, 3)], ids=str)
def test_an_image_that_counts_three_times_is_there_three_times(layer: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches_module, "CHUNK_BYTES", 1)
    monkeypatch.setattr(moments_module, "CHUNK_BYTES", 1)
    shape, times = shape_of(layer), torch.tensor([1, 3, 0, 2])
    x = torch.randn(4, 5, 6) if shape.linear else an_input(layer, 4)
    z, y = x + 0.3 * torch.randn_like(x), layer(x)
    weights = times[:, None].expand(4, 5).float() if shape.linear else times.float()
    often_x, often_y, often_z = (part.repeat_interleave(times, 0) for part in (x, y, z))
    for wanted, found in (
        (pair_moments(often_x, often_z, shape, Form.CHANNEL), pair_moments(x, z, shape, Form.CHANNEL, weights)),
        (pair_moments(often_z, often_z, shape, Form.SPATIAL), pair_moments(z, z, shape, Form.SPATIAL, weights)),
        (answer_moments(often_y, often_z, shape), answer_moments(y, z, shape, weights)),
    ):
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("far", [0.0, 1e4])
def test_covariances_are_exact_however_large_the_mean(far: float) -> None:
    """In float32 the products about zero alone would round all of it away."""
    x = torch.randn(400, 5) @ torch.randn(5, 5)
    z = x + 0.1 * torch.randn(400, 5)
    shape = shape_of(nn.Linear(5, 2))
    found = pair_moments((x.double() + far).float(), (z.double() - far).float(), shape, Form.CHANNEL).centred()
    both = torch.cat([x, z], 1).double()
    wanted = (both - both.mean(0)).mT @ (both - both.mean(0)) / 400
    torch.testing.assert_close(found.cross, wanted[:5, 5:], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.second, wanted[5:, 5:], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.mean_x, x.double().mean(0) + far, rtol=1e-6, atol=1e-3)


def test_samples_too_small_to_square_in_float32_have_moments() -> None:
    x = torch.randn(200, 5) @ torch.randn(5, 5)
    shape = shape_of(nn.Linear(5, 2))
    wanted = pair_moments(x, x, shape, Form.CHANNEL)
    found = pair_moments(1e-25 * x, 1e-25 * x, shape, Form.CHANNEL)
    torch.testing.assert_close(1e50 * found.second, wanted.second, rtol=1e-4, atol=1e-4)
    torch.linalg.cholesky(found.centred().ridged(1e-4))


@pytest.mark.parametrize("images", [1, 2, 3])
def test_few_samples_far_from_zero_stay_positive_definite(images: int) -> None:
    layer = nn.Conv2d(4, 6, 3)
    x = 1000 + torch.randn(images, 4, 3, 3)
    torch.linalg.cholesky(pair_moments(x, x, shape_of(layer), Form.CHANNEL).centred().ridged(1e-4))


def test_linear_rows_are_samples() -> None:
    x, z = torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    found = pair_moments(x, z, shape_of(nn.Linear(4, 2)), Form.CHANNEL)
    rows_x, rows_z = x.reshape(-1, 4), z.reshape(-1, 4)
    torch.testing.assert_close(found.cross, (rows_x.T @ rows_z / 15).double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.second, (rows_z.T @ rows_z / 15).double(), rtol=1e-5, atol=1e-6)


def test_unfold_is_torchs() -> None:
    x = torch.randn(2, 3, 6, 5)
    shape = shape_of(nn.Conv2d(3, 1, (2, 3), stride=(1, 2), padding=1))
    (ours,) = patches(x, shape)
    theirs = F.unfold(x, (2, 3), padding=1, stride=(1, 2)).transpose(0, 1).reshape(1, 18, -1)
    assert torch.equal(ours, theirs)


@torch.no_grad()
@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("form", list(Form))
def test_what_the_first_factor_sees_is_a_part_of_whole_windows(layer: Plain, form: Form) -> None:
    shape = shape_of(layer)
    x = an_input(layer, 5)
    part = first_moments(pair_moments(x, x, shape, Form.CHANNEL), shape, form)
    if part is None:
        strides, same = factor_shapes(shape, form, 1)[1].stride, layer(x).shape[2:] == x.shape[2:]
        assert shape.transposed or max(strides) > 1 or not same
        return
    for ours, theirs in zip(part, pair_moments(x, x, shape, form), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
