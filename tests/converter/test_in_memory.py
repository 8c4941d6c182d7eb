"""One call compresses a module in memory; what it gives can be saved, read again and exported."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import dprp
from dprp.converter import OptionError, Source, save_compressed
from dprp.converter.chain import conversion
from dprp.converter.chain.compressed import source_of
from dprp.converter.chain.compressing import CompressConfig, plan_and_convert
from dprp.converter.chain.network import Network, open_network
from dprp.export import read_metadata


def _images(count: int = 60) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)).cumsum(-1) / 3


def _labelled(model: nn.Module, count: int = 60) -> DataLoader[tuple[Tensor, ...]]:
    with torch.no_grad():
        return DataLoader(TensorDataset(_images(count), model(_images(count)).argmax(1)), batch_size=20)


def _macs(result: dprp.Compressed) -> float:
    return result.plan.fraction(dprp.Unit.MACS)


def test_images_alone_are_enough(residual: nn.Module) -> None:
    before = copy.deepcopy(residual.state_dict())
    result = dprp.compress(residual, images=_images(), budget="macs=0.6", rank_multiple=1, polish=5)
    assert _macs(result) <= 0.6
    assert any(isinstance(module, dprp.LowRank) for module in result.model.modules())
    assert not any(isinstance(module, dprp.LowRank) for module in residual.modules())
    assert all(torch.equal(before[name], value) for name, value in residual.state_dict().items())
    assert result.summary.verdict is not None
    assert "the same answer as the dense network on" in str(result.summary)
    assert set(result.summary.to_dict()["top1"].values()) == {None}


def _sound() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 32, 9, stride=2), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, 32, 5), nn.ReLU(),
        nn.ConvTranspose1d(32, 16, 4, stride=2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


def _video() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 16, 3, stride=(1, 2, 2), padding=1), nn.BatchNorm3d(16), nn.ReLU(),
        nn.Conv3d(16, 24, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip


def _features() -> nn.Module:
    return nn.Sequential(
        nn.Linear(40, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)
    )


@pytest.mark.parametrize(
    ("make", "sizes"),
    [(_sound, (2, 64)), (_video, (2, 4, 12, 12)), (_features, (40,))],
    ids=["sound", "video", "features"],
)
def test_what_it_eats_need_not_be_images(
    make: Callable[[], nn.Module], sizes: tuple[int, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = make().eval()
    data = TensorDataset(torch.randn(40, *sizes), torch.randint(5, (40,)))
    usual = {"budget": "macs=0.6", "rank_multiple": 1}
    result = dprp.compress(model, DataLoader(data, batch_size=20), epochs=1, polish=2, **usual)
    assert _macs(result) <= 0.6
    result.save(tmp_path / "small")
    again = dprp.load(tmp_path / "small", make())
    assert torch.equal(again(data.tensors[0]), result.model(data.tensors[0]))
    result.to_onnx(tmp_path / "small.onnx")
    assert not {"dprp.mean", "dprp.labels"} & set(read_metadata(tmp_path / "small.onnx"))
    _told_of_inputs_and_outputs(result, tmp_path / "told.onnx", sizes[0])
    own = f"{__name__}:{make.__name__}"
    source = Source(own, None, sizes, (0.0,) * sizes[0], (1.0,) * sizes[0])
    save_compressed(result.model, source, tmp_path / "own.safetensors")
    with pytest.raises(OptionError, match=r"eats .*, and the command line reads images CxHxW; use"):
        open_network(str(tmp_path / "own.safetensors"), trust=own)


class _Stereo(nn.Module):
    """Two images and how far apart their eyes are, by name; gives scores."""

    def __init__(self) -> None:
        super().__init__()
        self.eye = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(49, 5)

    def forward(self, left: Tensor, right: Tensor, *, apart: Tensor) -> Tensor:
        seen = [self.eye(image).mean((2, 3)) for image in (left, right)]
        return self.head(torch.cat([*seen, apart], 1))


def _pairs(count: int) -> dprp.Inputs:
    return dprp.Inputs(torch.randn(count, 3, 8, 8), torch.randn(count, 3, 8, 8), apart=torch.rand(count, 1))


def test_several_things_that_belong_together(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = _Stereo().eval()
    train, test = ([(part, torch.randint(5, (len(part),))) for part in _pairs(count).split(20)] for count in (80, 40))
    usual = {"budget": "macs=0.6", "rank_multiple": 1}
    result = dprp.compress(model, train, test, epochs=1, polish=2, matching=1.0, **usual)
    assert _macs(result) <= 0.6
    assert result.summary.verdict is not None
    assert result.summary.verdict.agreement.images == 40
    result.save(tmp_path / "small")
    again = dprp.load(tmp_path / "small", _Stereo())
    few = _pairs(3)
    assert torch.equal(again(*few.args, **few.kwargs), result.model(*few.args, **few.kwargs))
    assert result.to_onnx(tmp_path / "small.onnx", batch=1).ok
    sides = result.measure(test)
    assert sides.images == 40
    assert sides.top1[1] == result.summary.compressed.top1  # type: ignore[union-attr]
    alone = dprp.compress(model, images=_pairs(60), **usual)
    assert _macs(alone) <= 0.6
    assert alone.summary.compressed is None


def _told_of_inputs_and_outputs(result: dprp.Compressed, path: Path, channels: int) -> None:
    outputs = result.model(result.example).shape[1]
    names, mean, std = [f"class {number}" for number in range(outputs)], [0.5] * channels, [0.25] * channels
    for match, wrong in (
        (f"1 labels for {outputs} outputs; give a name for each", {"labels": names[:1]}),
        (f"not written, there are 0 means and {channels} stds for {channels} channels", {"std": std}),
        ("not written, std is 0.0; a finite number above 0", {"mean": mean, "std": [0.0] * channels}),
    ):
        with pytest.raises(OptionError, match=match):
            result.to_onnx(path, **wrong)  # type: ignore[arg-type]
    assert not path.exists()
    result.to_onnx(path, mean=mean, std=std, labels=names)
    about = read_metadata(path)
    assert json.loads(about["dprp.labels"]) == names
    assert [float(about[key].split(",")[-1]) for key in ("dprp.mean", "dprp.std")] == [0.5, 0.25]


@pytest.mark.parametrize("kind", ["tensors", "pairs"])
def test_images_may_come_in_batches(residual: nn.Module, kind: str) -> None:
    images = _images()
    batches = [part if kind == "tensors" else (part, torch.zeros(len(part))) for part in images.split(16)]
    options = {"budget": dprp.MacBudget(0.6), "rank_multiple": 1, "polish": 0}
    whole, parts = (dprp.compress(residual, images=given, **options) for given in (images, batches))  # type: ignore[arg-type]
    torch.testing.assert_close(parts.model(images), whole.model(images))


def test_training_survives(residual: nn.Module, tmp_path: Path) -> None:
    class Pulled(DataLoader[tuple[Tensor, ...]]):
        """Whose plug is pulled in the second epoch."""

        rounds = 0

        def __iter__(self) -> Iterator[tuple[Tensor, ...]]:  # type: ignore[override]
            self.rounds += 1
            for number, batch in enumerate(super().__iter__()):
                if self.rounds == 3 and number == 2:  # the first round gave the images to plan on
                    raise ConnectionError("no data")
                yield batch

    data = _labelled(residual).dataset
    train, path = DataLoader(data, batch_size=20), tmp_path / "run"
    how = {"budget": "macs=0.6", "epochs": 3, "headroom": 1.5, "rank_multiple": 1}
    whole = dprp.compress(residual, train, **how)  # type: ignore[arg-type]
    with pytest.raises(ConnectionError, match="no data"):
        dprp.compress(residual, Pulled(data, batch_size=20), folder=dprp.RunFolder(path, every=1), **how)  # type: ignore[arg-type]
    folder = dprp.RunFolder(path, resume=True)
    resumed = dprp.compress(residual, train, folder=folder, **how)  # type: ignore[arg-type]
    assert [step.step for step in folder.history()] == list(range(1, 10))
    assert resumed.plan == whole.plan
    theirs = whole.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in resumed.model.state_dict().items())


@pytest.mark.parametrize(
    ("epochs", "headroom", "polish", "polished"),
    [(0, 1.0, None, True), (1, 1.0, None, True), (1, 1.0, 0, False), (1, 1.5, None, False), (1, 1.5, 2, True)],
)
def test_training_starts_from_a_polished_network_unless_cuts_follow(
    residual: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
    epochs: int,
    headroom: float,
    polish: int | None,
    polished: bool,
) -> None:
    monkeypatch.setattr(conversion, "usual_steps", lambda *_: 2)
    network = Network(residual, source_of(_images()), compressed=False)
    config = CompressConfig(epochs=epochs, headroom=headroom, polish=polish, rank_multiple=1)
    images = _labelled(residual)
    made = plan_and_convert(network, dprp.MacBudget(0.6), config, calibrate_on=images, progress=False)
    assert (made.polished is not None) is polished


@pytest.mark.parametrize("headroom", [1.0, 1.5])
def test_the_whole_chain(residual: nn.Module, tmp_path: Path, headroom: float) -> None:
    train, test = _labelled(residual), _labelled(residual, 40)
    usual = {"budget": "macs=0.6", "rank_multiple": 1}
    result = dprp.compress(residual, train, test, epochs=1, polish=2, headroom=headroom, **usual)
    assert _macs(result) <= 0.6
    assert result.plan == dprp.plan_of(result.model)
    summary = result.summary.to_dict()
    assert summary["top1"]["dense"] == 100.0
    assert summary["top1"]["compressed"] == dprp.evaluate(result.model, test).top1
    assert summary["verdict"]["images"] == 40
    gain = result.summary.gain
    assert (gain is None) is (headroom > 1)  # where training starts at other ranks
    assert summary["top1"]["before_training"] == (None if gain is None else gain.before)
    assert gain is None or (gain.after == summary["top1"]["compressed"] and str(gain) in str(result.summary))

    result.save(tmp_path / "out")
    again = dprp.load(tmp_path / "out", residual)
    assert torch.equal(again(_images()), result.model(_images()))
    assert not any(isinstance(module, dprp.LowRank) for module in residual.modules())
    with pytest.raises(OptionError, match="exists already"):
        result.save(tmp_path / "out")
    result.save(tmp_path / "out", force=True)

    result.to_onnx(tmp_path / "small.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: _images().numpy()})
    np.testing.assert_allclose(found, result.model(_images()).detach().numpy(), rtol=1e-3, atol=1e-4)
    with pytest.raises(OptionError, match="exists"):
        result.to_onnx(tmp_path / "small.onnx")


def test_what_is_to_be_trained_is_judged_afterwards(residual: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking for a gentler budget that would hold without training takes as long as the conversion itself."""

    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("dprp.converter.chain.conversion.judge", fail)
    train, usual = _labelled(residual), {"budget": "macs=0.6", "rank_multiple": 1}
    result = dprp.compress(residual, train, _labelled(residual, 40), epochs=1, polish=0, **usual)
    assert result.summary.verdict is not None


def test_what_trained_in_bf16_is_exported(residual: nn.Module, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dprp.ConverterWarning)  # of CPUs without bf16
        usual = {"budget": "macs=0.6", "rank_multiple": 1}
        result = dprp.compress(residual, _labelled(residual), epochs=1, polish=0, mixed_precision="bf16", **usual)
    assert {value.dtype for value in result.model.parameters()} == {torch.float32}
    assert result.to_onnx(tmp_path / "small.onnx").max_rel < 1e-4


def test_mistakes_are_one_sentence(residual: nn.Module) -> None:
    for match, options in (
        ("there are no images; give images=", {}),
        ("there are no images; give images=", {"test": _labelled(residual)}),
        ("2 epochs need training batches; give train, or epochs=0", {"epochs": 2, "images": _images()}),
        ("epochs -1 is below 0", {"epochs": -1}),
        ("headroom 0.5 is below 1", {"headroom": 0.5}),
        (r"images have the shape \(16,\); give \(N, C, H, W\)", {"images": _images()[0, 0, 0]}),
        ("batches are of str; give tensors of images", {"images": ["cat.png"]}),
        ("there are no images in the batches", {"images": []}),
        ("calibration images 0 is below 1", {"images": _images(), "calibration_images": 0}),
    ):
        with pytest.raises(OptionError, match=match):
            dprp.compress(residual, budget="macs=0.5", **options)  # type: ignore[arg-type]


def test_all_files_side_by_side(residual: nn.Module) -> None:
    test = _labelled(residual)
    result = dprp.compress(residual, images=_images(), budget="macs=0.6", rank_multiple=1, polish=0)
    floats = result.measure(test)
    assert floats.names == ("dense.onnx", "compressed.onnx")
    assert floats.top1[0] == 100.0
    all_four = result.measure(list(test), int8_on=_images(), target="x86-vnni")
    assert all_four.top1[:2] == floats.top1
    assert len(all_four.found) == 2
    lines = str(all_four).splitlines()
    assert [text in lines[1] for text in ("dense", "compressed", "int8")] == [True] * 3
    assert any("top-1 of 60" in line and "100.00 %" in line for line in lines)
    assert any(line.startswith("note: ") and "layers in 8 bits" in line for line in lines)
    with pytest.raises(OptionError, match="test can be gone through only once; give a list of batches"):
        result.measure(iter(test))
    with pytest.raises(OptionError, match="target 'gpu' is not one of auto, x86-vnni, x86, arm"):
        result.measure(test, int8_on=_images(), target="gpu")


def test_another_module_cannot_be_loaded_into(residual: nn.Module, tmp_path: Path) -> None:
    dprp.compress(residual, images=_images(), budget="macs=0.6", rank_multiple=1, polish=0).save(tmp_path / "out")
    with pytest.raises(dprp.CheckpointError):
        dprp.load(tmp_path / "out", nn.Sequential(nn.Flatten(), nn.Linear(768, 10)))


def test_every_public_name_is_there_and_torch_waits() -> None:
    assert all(getattr(dprp, name) is not None for name in dprp.__all__)
    assert len(set(dprp.__all__)) == len(dprp.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = dprp.nothing
    asked = "import sys, dprp; print(dprp.__version__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [dprp.__version__, "False"]
