"""What stands around a network or its weights: types, layouts, wrappers, compilers."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import dprp
from dprp.converter import LowRank, MacBudget, ModelError, calibrate, convert, fuse, plan_ranks, survey


def trunk() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ).eval()  # fmt: skip


IMAGES = torch.randn(24, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def smaller(model: nn.Module, images: Tensor = IMAGES) -> nn.Module:
    layers = survey(model, images)
    calibration = calibrate(model, layers, images)
    plan = plan_ranks(layers, MacBudget(0.6), energies=calibration.energies, rank_multiple=1)
    return convert(model, plan, calibration=calibration)


@pytest.mark.parametrize(("dtype", "off"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_half_precision_is_decomposed_in_more_and_kept(dtype: torch.dtype, off: float) -> None:
    """The factors are those of the same network in float64, rounded once."""
    model, images = trunk().to(dtype), IMAGES.to(dtype)
    small, exact = smaller(model, images), smaller(copy.deepcopy(model).double(), images.double())
    plain = fuse(small)
    assert {parameter.dtype for network in (small, plain) for parameter in network.parameters()} == {dtype}
    ranks = [[part.rank for part in network.modules() if isinstance(part, LowRank)] for network in (small, exact)]
    assert ranks[0] == ranks[1]
    with torch.no_grad():
        wanted = exact(images.double())
        for network in (small, plain):
            assert float((network(images).double() - wanted).norm() / wanted.norm()) < off


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_one_call_takes_every_type(dtype: torch.dtype) -> None:
    found = dprp.compress(trunk().to(dtype), images=IMAGES.to(dtype), budget="macs=0.6", rank_multiple=1, polish=2)
    assert {parameter.dtype for parameter in found.model.parameters()} == {dtype}


def test_channels_stay_last() -> None:
    small = smaller(trunk().to(memory_format=torch.channels_last))
    plain = fuse(small)
    found = [part for part in plain.modules() if isinstance(part, nn.Conv2d) and max(part.kernel_size) > 1]
    assert found
    assert all(part.weight.is_contiguous(memory_format=torch.channels_last) for part in found)
    torch.testing.assert_close(plain(IMAGES), small(IMAGES), rtol=1e-4, atol=1e-5)


def test_what_is_frozen_stays_frozen() -> None:
    model = trunk()
    model[3].requires_grad_(False)
    small = smaller(model)
    assert not any(parameter.requires_grad for parameter in small[3].parameters())
    assert all(parameter.requires_grad for parameter in small[7].parameters())


class Inside(nn.Module):
    """A network that holds a wrapped one."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.features = wrap(trunk())

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize("wrap", [nn.DataParallel, compiled, compiled_in_place])
def test_wrapped_parts_are_compressed_as_they_are(
    wrap: Callable[[nn.Module], nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("ignore", UserWarning)  # DataParallel, of machines without a GPU
        model = Inside(wrap).eval()
        small = smaller(model)
        wanted = smaller(trunk())(IMAGES)
        assert sum(isinstance(part, LowRank) for part in small.modules()) > 0
        torch.compiler.set_stance("force_eager")
        try:
            torch.testing.assert_close(fuse(small)(IMAGES), wanted, rtol=1e-4, atol=1e-5)
        finally:
            torch.compiler.set_stance("default")
    assert not caplog.records  # the compiler has not been asked


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.DataParallel(trunk()), r"the model is wrapped in DataParallel; pass model\.module instead"),
        (lambda: compiled(trunk()), r"the model is wrapped in OptimizedModule; pass model\._orig_mod instead"),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(4)),
            r"1: is a LazyLinear that has never run, and has no weight; run the model on an example, and load",
        ),
    ],
)
def test_what_cannot_be_compressed_is_refused_with_a_remedy(model: Callable[[], nn.Module], message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with pytest.raises(ModelError, match=message):
            survey(model(), IMAGES)
