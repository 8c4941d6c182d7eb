"""Networks that take several things, or give several: the whole chain, and what stands for their inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from dprp.converter import (
    Calibration,
    ConverterWarning,
    Inputs,
    LowRank,
    MacBudget,
    ModelError,
    PolishConfig,
    Unit,
    calibrate,
    convert,
    fuse,
    plan_of,
    plan_ranks,
    polish,
    survey,
)
from dprp.converter.analysis.inputs import Samples, as_samples
from dprp.converter.analysis.running import run, scores_in
from dprp.export import ExportError, to_onnx


class Trunk(nn.Module):
    """(N, 3, H, W) -> (N, 24)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((2, 3))


class TwoFrames(nn.Module):
    """Two images, by position; gives a dictionary, as segmentation networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = Trunk(), nn.Linear(48, 10)

    def forward(self, first: Tensor, second: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        both = torch.cat([self.trunk(first), self.trunk(second)], 1)
        return {"out": self.head(both) * scale, "features": both}


@dataclass
class Answer:
    logits: Tensor
    hidden: Tensor | None = None


class Tokens(nn.Module):
    """Token numbers and a mask, by name; gives a dataclass, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Answer:
        hidden = self.layer(self.embedding(ids), src_key_padding_mask=None if mask is None else ~mask)
        return Answer(self.head(hidden.mean(1)), hidden)


class OneByOne(nn.Module):
    """A list of images of different sizes; gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = Trunk(), nn.Linear(24, 10)

    def forward(self, images: list[Tensor]) -> tuple[Tensor, Tensor]:
        features = torch.stack([self.trunk(image[None])[0] for image in images])
        return self.head(features), features


def _frames() -> Any:
    return torch.randn(12, 3, 8, 8), torch.randn(12, 3, 8, 8)


def _tokens() -> Any:
    return {"ids": torch.randint(20, (12, 7)), "mask": torch.arange(7) < torch.randint(3, 8, (12, 1))}


def _images() -> Any:
    return [torch.randn(3, size, 8) for size in (8, 9, 10, 11) * 3]


CASES = [(TwoFrames, _frames), (Tokens, _tokens), (OneByOne, _images)]
NAMES = ["two tensors", "by name", "a list"]


@pytest.mark.parametrize(("make", "draw"), CASES, ids=NAMES)
def test_the_whole_chain(make: Callable[[], nn.Module], draw: Callable[[], Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, given = make().eval(), draw()
    samples = as_samples(given)
    layers = survey(model, given)
    assert layers.macs == survey(model, samples[:1]).macs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConverterWarning)  # a list goes through its network one by one
        calibration = calibrate(model, layers, [(given, None)])
        plan = plan_ranks(layers, MacBudget(0.6), energies=calibration.energies, rank_multiple=1)
        low = convert(model, plan, calibration=calibration)
    assert survey(low, given).macs <= 0.6 * layers.macs
    assert plan_of(low).fraction(Unit.MACS) <= 0.6
    found = polish(low, model, given, PolishConfig(steps=3))
    assert found.after <= found.before
    plain = fuse(low)
    assert not any(isinstance(module, LowRank) for module in plain.modules())
    torch.testing.assert_close(scores_in(run(plain, samples)), scores_in(run(low, samples)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores_in(run(fuse(low, given), samples)), scores_in(run(low, samples)))
    assert to_onnx(plain, given, tmp_path / "plain.onnx").ok


def test_a_network_of_two_frames_that_reads_its_batch_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torchvision.models.optical_flow.raft_small(weights=None).eval()
    frames = Inputs(torch.rand(2, 3, 128, 128), torch.rand(2, 3, 128, 128), num_flow_updates=2)
    layers = survey(model, frames)
    low = convert(model, plan_ranks(layers, MacBudget(0.6)))
    assert plan_of(low).fraction(Unit.MACS) <= 0.6
    plain = fuse(low, frames)
    with pytest.raises(ExportError, match=r"RAFT: torch cannot export it .* or fix how many images a run takes"):
        to_onnx(plain, frames, tmp_path / "raft.onnx")
    assert to_onnx(plain, frames, tmp_path / "raft.onnx", batch=1).ok


@pytest.mark.parametrize(("make", "draw"), CASES, ids=NAMES)
def test_they_are_calibrated_on_as_tensors_are(make: Callable[[], nn.Module], draw: Callable[[], Any]) -> None:
    """All at once, as batches, and as batches with labels: the same images, the same errors."""
    torch.manual_seed(0)
    model, samples = make().eval(), as_samples(draw())
    assert isinstance(samples, Inputs)
    layers = survey(model, samples)
    batches = samples.split(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConverterWarning)
        every = [calibrate(model, layers, given) for given in (samples, batches, [(part, 0) for part in batches])]
    assert all(_same(found, every[0]) for found in every[1:])


def _same(one: Calibration, other: Calibration) -> bool:
    return one.energies.keys() == other.energies.keys() and all(
        torch.allclose(energy, other.energies[key]) for key, energy in one.energies.items()
    )


def _everything() -> Inputs:
    """Of each kind that there may be."""
    return Inputs(
        torch.randn(6, 2), [torch.randn(3, size) for size in range(1, 7)], 0.5, more={"a": torch.arange(6), "b": None}
    )


def test_samples_are_cut_and_joined() -> None:
    inputs = _everything()
    some = inputs[torch.tensor([4, 1])]
    assert len(inputs) == 6
    assert len(some) == 2
    assert inputs.shape == (6, 2)
    assert torch.equal(some.args[0], inputs.args[0][[4, 1]])
    assert [tensor.shape for tensor in some.args[1]] == [(3, 5), (3, 2)]
    assert torch.equal(some.kwargs["more"]["a"], torch.tensor([4, 1]))
    assert some.args[2] == 0.5
    assert some.kwargs["more"]["b"] is None
    again = Inputs.joined(inputs.split(4))
    assert [len(part) for part in inputs.split(4)] == [4, 2]
    assert torch.equal(again.args[0], inputs.args[0])
    assert all(map(torch.equal, again.args[1], inputs.args[1]))
    assert torch.equal(again.kwargs["more"]["a"], inputs.kwargs["more"]["a"])


def test_only_what_is_of_floating_point_changes_its_type() -> None:
    inputs = _everything()
    for changed, dtype in ((inputs.double(), torch.float64), (inputs.to(torch.zeros(1).half()), torch.float16)):
        assert changed.args[0].dtype == changed.args[1][3].dtype == dtype
        assert changed.kwargs["more"]["a"].dtype == torch.int64
    noise = inputs.noise(torch.Generator().manual_seed(1))
    assert not torch.equal(noise.args[0], inputs.args[0])
    assert torch.equal(noise.kwargs["more"]["a"], inputs.kwargs["more"]["a"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            (torch.zeros(3, 2), torch.zeros(4, 2)),
            r"the inputs hold 3 and 4 samples; give tensors \(N, \.\.\.\)",
        ),
        ({"scale": 1.0}, r"the inputs hold no tensor; give tensors"),
        ("image", r"the inputs are of type str; give a tensor \(N, \.\.\.\), a tuple of them"),
    ],
)
def test_what_cannot_be_samples_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        survey(TwoFrames().eval(), given)


def test_a_network_that_cannot_take_them_says_so() -> None:
    given: Samples = Inputs(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ModelError, match=r"cannot take an input of shape \(1, 3, 8, 8\), float32 \(.*'second'"):
        survey(TwoFrames().eval(), given)
