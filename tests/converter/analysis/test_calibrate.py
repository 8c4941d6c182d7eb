"""Calibration: predictions that come true, and conversion that makes up for itself."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dprp.converter import (
    Calibration,
    ConverterWarning,
    Form,
    LowRank,
    MacBudget,
    ModelError,
    RankRatio,
    Sensitivity,
    calibrate,
    convert,
    evaluate,
    input_moments,
    plan_ranks,
    sensitivities,
    survey,
)
from dprp.converter.analysis import memory as memory_module
from dprp.converter.analysis.batch_axis import batch_axes
from dprp.converter.analysis.divergence import divergence
from dprp.converter.conversion.attached import low_rank_layers
from dprp.converter.conversion.batchnorm import reestimate

EXAMPLE = torch.zeros(1, 3, 16, 16)


@pytest.mark.parametrize("form", [Form.CHANNEL, Form.POINTWISE, Form.SPATIAL])
def test_predicted_error_is_the_measured_one(form: Form) -> None:
    torch.manual_seed(1)
    layer = nn.Conv2d(6, 24, 3, padding=1, stride=2)
    model = nn.Sequential(layer).eval()
    images = torch.randn(64, 6, 12, 12).cumsum(-1)  # neighbours alike, as in pictures
    layers = survey(model, images[:1])
    calibration = calibrate(model, layers, images)
    plan = plan_ranks(layers, RankRatio(0.4), forms=[form], energies=calibration.energies)
    predicted = plan.layers[0].error
    assert predicted is not None
    new = convert(model, plan, calibration=calibration)
    with torch.no_grad():
        wanted = model(images)
        clean = wanted - wanted.mean((0, 2, 3), keepdim=True)
        measured = float((new(images) - wanted).square().sum() / clean.square().sum())
    # `channel` is exact; the others see a part of the window, and their second factor is fitted to the whole of it.
    assert measured == pytest.approx(predicted, rel=0.02) if form is Form.CHANNEL else measured < 3 * predicted + 0.02


@pytest.mark.parametrize("shape", [(40, 24), (8, 5, 24), (4, 2, 5, 24)])
@pytest.mark.parametrize("bias", [0.0, 10.0])
def test_a_dense_layer_of_rank_4_loses_nothing_at_rank_4(shape: tuple[int, ...], bias: float) -> None:
    """Whatever axes lie before the features, and whatever constant is added, which the bias takes up."""
    torch.manual_seed(2)
    layer = nn.Linear(24, 16)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(16, 4) @ torch.randn(4, 24))
        layer.bias.fill_(bias)
    x = torch.randn(shape)
    model = nn.Sequential(layer).eval()
    energies = calibrate(model, survey(model, x[:1]), x).energies["0", Form.CHANNEL]
    product = x.flatten(0, -2) @ layer.weight.mT
    torch.testing.assert_close(energies[0], product.double().var(0, correction=0).sum(), rtol=1e-4, atol=0)
    assert float(energies[3]) > 1e-2 * float(energies[0])
    assert float(energies[4]) < 1e-5 * float(energies[0])


def test_full_rank_stays_the_same_function_with_images(residual: nn.Module) -> None:
    images = torch.randn(40, 3, 16, 16)
    layers = survey(residual, EXAMPLE)
    calibration = calibrate(residual, layers, images)
    for form in (Form.CHANNEL, Form.POINTWISE, Form.SPATIAL):
        new = convert(residual, plan_ranks(layers, RankRatio(1.0), forms=[form]), calibration=calibration)
        with torch.no_grad():
            torch.testing.assert_close(new(images), residual(images), rtol=1e-3, atol=3e-4)


def test_in_sequence_is_better_than_apart_and_than_plain(resnet20: nn.Module, cifar: dict[str, Tensor]) -> None:
    layers = survey(resnet20, cifar["train"][:1])
    calibration = calibrate(resnet20, layers, cifar["train"])
    plain_plan = plan_ranks(layers, MacBudget(0.5), forms=[Form.SPATIAL])
    plan = plan_ranks(layers, MacBudget(0.5), energies=calibration.energies)
    batches = [(cifar["test"], cifar["test_labels"])]
    plain = evaluate(convert(resnet20, plain_plan), batches).top1
    ours = evaluate(convert(resnet20, plan, calibration=calibration), batches).top1
    assert ours > 86.0
    assert ours > plain + 5


def test_the_model_is_untouched_and_nothing_is_left_on_it(residual: nn.Module) -> None:
    before = copy.deepcopy(residual.state_dict())
    layers = survey(residual, EXAMPLE)
    calibration = calibrate(residual, layers, torch.randn(8, 3, 16, 16))
    convert(residual, plan_ranks(layers, MacBudget(0.6), rank_multiple=2), calibration=calibration)
    assert all(torch.equal(before[name], value) for name, value in residual.state_dict().items())
    assert not any(module._forward_hooks for module in residual.modules())


def test_batches_images_and_limits(residual: nn.Module) -> None:
    layers = survey(residual, EXAMPLE)
    images = torch.randn(10, 3, 16, 16)
    batches = [(images[:4], torch.zeros(4)), (images[4:8], torch.zeros(4)), (images[8:], torch.zeros(2))]
    assert torch.equal(calibrate(residual, layers, batches, images=7).images, images[:7])
    assert torch.equal(calibrate(residual, layers, images, images=99).images, images)
    with pytest.raises(ModelError, match="there are no calibration images"):
        calibrate(residual, layers, [])
    with pytest.raises(ModelError, match="calibration images hold values that are not finite"):
        calibrate(residual, layers, images / 0)


def test_no_more_images_than_walk_in_step(residual: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = survey(residual, EXAMPLE)
    most = 4 * (24 * 16 * 16 + 32 * 8 * 8)  # bytes, of `down`
    monkeypatch.setattr(memory_module, "_MOST_BATCHES", 3)
    for spare, fit in ((0, 6), (-1, 3)):
        monkeypatch.setattr(memory_module, "_AT_ONCE", 4 * most * 2 + spare)
        assert len(calibrate(residual, layers, torch.randn(10, 3, 16, 16)).images) == fit


def test_batch_norm_is_taken_anew_only_where_it_helps(residual: nn.Module) -> None:
    images = torch.randn(60, 3, 16, 16)
    spoiled = copy.deepcopy(residual)
    spoiled.norm.running_mean.add_(3.0)
    # The dense network's own statistics are those of these images, so taking them anew repairs the damage.
    for norm in (residual.norm, residual.down_norm):
        norm.reset_running_stats()
        norm.momentum = None
    residual.train()(images)
    residual.eval()
    spoiled.down_norm.load_state_dict(residual.down_norm.state_dict())
    before = divergence(spoiled, residual, images[::5])
    assert reestimate(spoiled, residual, images)
    assert divergence(spoiled, residual, images[::5]) < before
    assert spoiled.norm.momentum == 0.1
    # A network that is right already is left alone, to the bit.
    same = copy.deepcopy(residual)
    assert not reestimate(same, residual, images[:30])
    assert torch.equal(same.norm.running_mean, residual.norm.running_mean)


def test_batch_norm_goes_a_part_of_the_way(residual: nn.Module) -> None:
    images = torch.randn(60, 3, 16, 16)
    wanted = copy.deepcopy(residual)
    wanted.norm.running_mean.add_(1.0)  # the best place is neither here nor where the images' own statistics are
    before, after = residual.norm.running_mean.clone(), copy.deepcopy(residual)
    way = reestimate(residual, wanted, images)
    assert way in (0.25, 0.5)
    assert residual.norm.num_batches_tracked == after.norm.num_batches_tracked
    with torch.no_grad():
        seen = torch.cat([images[place::5] for place in range(1, 5)])
        mean = after.stem(seen).mean((0, 2, 3))
    torch.testing.assert_close(residual.norm.running_mean, before.lerp(mean, way), rtol=1e-4, atol=1e-4)


def test_input_moments_are_those_of_the_low_rank_layers(residual: nn.Module) -> None:
    images = torch.randn(20, 3, 16, 16)
    new = convert(residual, plan_ranks(survey(residual, EXAMPLE), RankRatio(0.3), forms=[Form.CHANNEL]))
    found = input_moments(new, images)
    assert {name for name, _ in found} == set(low_rank_layers(new))
    columns = nn.functional.unfold(images, 3, padding=1).transpose(0, 1).reshape(27, -1)
    second = columns @ columns.T / columns.shape[1]
    torch.testing.assert_close(found["stem", Form.CHANNEL], second, rtol=1e-2, atol=1e-3)
    assert not any(module._forward_pre_hooks for module in new.modules())


class Sequence(nn.Module):
    """(N, L, C) outside, (L, N, C) inside, as recurrent networks and older transformers have it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(0, 1)).transpose(0, 1)


class Table(nn.Module):
    """A layer whose input is the same for all images, as Swin V2's cpb_mlp, and one that sees windows of them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(24, 16))
        self.bias = nn.Linear(16, 48)
        self.windows = nn.Linear(48, 48)
        self.crosswise = nn.Linear(48, 48)

    def forward(self, x: Tensor) -> Tensor:  # (N, 24, 48)
        x = x + self.bias(self.table)
        x = self.windows(x.unflatten(1, (4, 6)).flatten(0, 1)).unflatten(0, (-1, 4)).flatten(1, 2)
        return self.crosswise(x.unflatten(1, (4, 6)).transpose(0, 1).flatten(0, 1)).unflatten(0, (4, -1)).mean((0, 2))


@pytest.mark.parametrize(("images", "length"), [(64, 5), (4, 64), (4, 4)])
def test_sequences_first_are_fitted_along_their_own_axis(images: int, length: int) -> None:
    """Whether or not the number of images divides the length, which is where sizes alone mislead."""
    model = Sequence().eval()
    x = torch.randn(images, length, 32) @ torch.diag(torch.linspace(0.1, 3.0, 32))
    layers = survey(model, x[:1])
    calibration = calibrate(model, layers, x)
    plan = plan_ranks(layers, RankRatio(0.3), energies=calibration.energies)
    with torch.no_grad():
        dense = model(x)
        lost = [
            float((convert(model, plan, calibration=data)(x) - dense).square().sum()) for data in (calibration, None)
        ]
        clean = dense - model.inner.bias
    assert lost[0] < 0.9 * lost[1]
    predicted = plan.layers[0].error
    assert predicted is not None
    assert lost[0] / float(clean.square().sum()) <= predicted * 1.01 + 1e-6


def test_layers_that_do_not_carry_the_images_are_fitted_without_them_and_named() -> None:
    model = Table().eval()
    x = torch.randn(12, 24, 48)
    assert batch_axes(model, ["bias", "windows", "crosswise"], x) == {"bias": None, "windows": 0, "crosswise": None}
    layers = survey(model, x[:1])
    calibration = calibrate(model, layers, x)
    plan = plan_ranks(layers, RankRatio(0.3), energies=calibration.energies)
    with pytest.warns(ConverterWarning, match=r"^bias, crosswise: fitted to the weights alone"):
        new = convert(model, plan, calibration=calibration)
    plain = convert(model, plan)
    x = torch.randn(5, 24, 48)
    torch.testing.assert_close(new.bias(model.table), plain.bias(model.table))
    full = plan_ranks(layers, RankRatio(1.0), energies=calibration.energies)
    with pytest.warns(ConverterWarning, match="fitted to the weights alone"), torch.no_grad():
        torch.testing.assert_close(convert(model, full, calibration=calibration)(x), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("images", [1, 2])
def test_few_images_are_told_apart_all_the_same(residual: nn.Module, images: int) -> None:
    x = torch.randn(images, 3, 16, 16)
    layers = survey(residual, EXAMPLE)
    calibration = calibrate(residual, layers, x)
    convert(residual, plan_ranks(layers, RankRatio(0.3)), calibration=calibration)  # a warning is an error here


class Many(nn.Module):
    """Answers as segmentation networks and classifiers with a second head give them."""

    def __init__(self, net: nn.Module, wrap: Any) -> None:
        super().__init__()
        self.net, self.wrap = net, wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.net(x))


@pytest.mark.parametrize("wrap", [lambda y: (y, y.mean()), lambda y: {"out": y, "aux": [y]}, lambda y: [y, None]])
def test_answers_of_several_parts_are_judged_by_the_first(residual: nn.Module, wrap: Any) -> None:
    images = torch.randn(20, 3, 16, 16)
    found = []
    for model in (residual, Many(residual, wrap)):
        layers = survey(model, EXAMPLE)
        calibration = calibrate(model, layers, images)
        lost = sensitivities(model, layers, calibration, Sensitivity.KL)
        plan = plan_ranks(layers, MacBudget(0.5), energies=calibration.energies, distortions=lost)
        new = convert(model, plan, calibration=calibration)
        found.append((list(lost.values()), list(new.state_dict().values())))
    for one, other in zip(found[0], found[1], strict=True):
        for ours, theirs in zip(one, other, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_what_cannot_be_calibrated_is_one_sentence(residual: nn.Module) -> None:
    layers = survey(residual, EXAMPLE)
    images = torch.randn(8, 3, 16, 16)
    for wrong, message in (
        (["images"], r"a calibration batch is a str; give images \(N, \.\.\.\)"),
        ([images, torch.randn(8, 3, 12, 12)], r"shapes \(3, 16, 16\) and \(3, 12, 12\); give them one size"),
        (images.repeat(1, 2, 1, 1), r"cannot take an input of shape \(3, 6, 16, 16\), float32 \(stem: "),
        (images.double(), r"cannot take an input of shape .*, float64 \(stem: "),
        ((images * 127).to(torch.uint8), r"cannot take an input of shape .*, uint8 \(stem: "),
        (images * 1e20, r"stem: its outputs are too large to square \(largest"),
    ):
        with pytest.raises(ModelError, match=message):
            calibrate(residual, layers, wrong)
    plan = plan_ranks(layers, RankRatio(0.3))
    with pytest.raises(ModelError, match=r"stem: its inputs are not finite, or too large to square \(largest"):
        convert(residual, plan, calibration=Calibration(images * 1e20, {}))
    with torch.no_grad():
        residual.down.weight[0] = float("nan")
    with pytest.raises(ModelError, match=r"down: its weight holds values that are not finite; repair"):
        calibrate(residual, survey(residual, EXAMPLE), images)


def test_a_model_that_cannot_be_copied_is_one_sentence(residual: nn.Module) -> None:
    residual.lock = threading.Lock()
    layers = survey(residual, EXAMPLE)
    with pytest.raises(
        ModelError, match=r"the model cannot be copied \(cannot pickle .*lock.*\); make copy\.deepcopy"
    ):
        convert(residual, plan_ranks(layers, RankRatio(0.3)))
    assert isinstance(convert(residual, plan_ranks(layers, RankRatio(0.3)), inplace=True).stem, LowRank)
