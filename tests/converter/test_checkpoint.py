"""A compressed checkpoint comes back bit-equal, or is refused with a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from dprp.converter import (
    CheckpointError,
    MacBudget,
    PlanError,
    RankRatio,
    Source,
    Unit,
    convert,
    is_compressed,
    load_compressed,
    plan_of,
    plan_ranks,
    save_compressed,
    survey,
)

from .conftest import Residual

SOURCE = Source("own:Residual", None, (3, 16, 16), (0.5,) * 3, (0.25,) * 3)


def build(source: Source) -> nn.Module:
    assert source == SOURCE
    return Residual()


@pytest.fixture
def compressed(residual: nn.Module) -> nn.Module:
    layers = survey(residual, torch.zeros(1, 3, 16, 16))
    return convert(residual, plan_ranks(layers, MacBudget(0.5), rank_multiple=2))


@pytest.fixture
def file(compressed: nn.Module, tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    save_compressed(compressed, SOURCE, path)
    return path


def test_outputs_are_bit_equal(compressed: nn.Module, file: Path) -> None:
    loaded = load_compressed(file, build, trust=SOURCE.model)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded.model(x), compressed(x))
    assert loaded.plan == plan_of(loaded.model) == plan_of(compressed)
    assert loaded.model.twice is loaded.model.alias
    assert is_compressed(file)
    assert not loaded.model.training


def rewritten(file: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], None]) -> Path:
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    change(tensors, metadata)
    save_file(tensors, file, metadata)
    return file


def set_metadata(**values: str) -> Callable[[dict[str, torch.Tensor], dict[str, str]], None]:
    return lambda _tensors, metadata: metadata.update(values)


def absurd_rank(_tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    plan = json.loads(metadata["plan"])
    next(layer for layer in plan["layers"] if layer["form"])["rank"] = 10**9
    metadata["plan"] = json.dumps(plan)


def other_rank(_tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    plan = json.loads(metadata["plan"])
    next(layer for layer in plan["layers"] if layer["form"])["rank"] = 1
    metadata["plan"] = json.dumps(plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_metadata(dprp_format="2"), r"has format 2, this dprp reads 1; upgrade dprp"),
        (lambda _t, m: m.pop("dprp_format"), r"is a plain safetensors file; pass it as --checkpoint"),
        (set_metadata(plan="{"), r"its metadata does not read \(the plan is not JSON"),
        (set_metadata(source="[]"), r"its metadata does not read"),
        (set_metadata(tied="[]"), r"its metadata does not read \(tied is not a map\)"),
        (absurd_rank, r"rank 1000000000 is not in 1\.\.\d+"),
        (other_rank, r"the network has \[.*\] \(\d+ such in all\); the file is damaged"),
        (lambda t, _m: t.pop("head.bias"), r"head\.bias is missing, the network has \[10\]"),
        (lambda t, _m: t.update(extra=torch.zeros(1)), r"extra is \[1\], the network has no such tensor"),
        (lambda t, _m: t.update({"head.bias": torch.zeros(11)}), r"head\.bias is \[11\], the network has \[10\]"),
        (lambda t, _m: t["norm.bias"].fill_(float("nan")), r"norm\.bias holds values that are not finite"),
    ],
)
def test_what_is_refused(
    file: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], None], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_compressed(rewritten(file, change), build, trust=SOURCE.model)
    assert str(caught.value).startswith(f"{file}: ")


def test_files_that_are_none(file: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file; check the path"):
        load_compressed(tmp_path / "gone.safetensors", build)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"does not read as safetensors .*; the file is damaged"):
        load_compressed(file, build, trust=SOURCE.model)
    assert not is_compressed(file)


def test_writing_is_whole_or_not_at_all(compressed: nn.Module, file: Path, tmp_path: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(CheckpointError, match=r"exists already; pass --force"):
        save_compressed(compressed, SOURCE, file)
    assert file.read_bytes() == before
    save_compressed(compressed, SOURCE, file, force=True)
    for path, message in (
        (tmp_path / "small.pth", "a compressed checkpoint is a .safetensors file"),
        (tmp_path / "gone" / "a.safetensors", "the folder .* does not exist"),
    ):
        with pytest.raises(CheckpointError, match=message):
            save_compressed(compressed, SOURCE, path)
    with pytest.raises(PlanError, match="convert it first"):
        save_compressed(Residual(), SOURCE, tmp_path / "dense.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["small.safetensors"]


class Masked(Residual):
    """With buffers as attention has them: a mask of -inf, and a view of another buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))
        self.register_buffer("corner", self.mask[:2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.mask.exp().sum()


def test_what_is_saved_loads(tmp_path: Path) -> None:
    model = Masked().eval()
    new = convert(model, plan_ranks(survey(model, torch.zeros(1, 3, 16, 16)), MacBudget(0.5), rank_multiple=2))
    save_compressed(new, SOURCE, tmp_path / "masked.safetensors")
    loaded = load_compressed(tmp_path / "masked.safetensors", lambda _source: Masked(), trust=SOURCE.model)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded.model(x), new(x))


@pytest.mark.parametrize("name", ["norm.weight", "norm.running_var", "twice.s"])
def test_what_would_not_load_is_not_saved(compressed: nn.Module, tmp_path: Path, name: str) -> None:
    compressed.state_dict(keep_vars=True)[name].data[0] = float("inf")
    with pytest.raises(CheckpointError, match=rf"{name} holds values that are not finite; repair"):
        save_compressed(compressed, SOURCE, tmp_path / "bad.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_network_converted_twice_saves_and_loads(residual: nn.Module, tmp_path: Path) -> None:
    example = torch.zeros(1, 3, 16, 16)
    once = convert(residual, plan_ranks(survey(residual, example), RankRatio(0.3), keep=["twice"]))
    twice = convert(once, plan_ranks(survey(once, example), RankRatio(0.4)))
    plan = plan_of(twice)
    assert {name: layer.rank for name, layer in plan.factored.items() if name != "twice"} == {
        name: layer.rank for name, layer in plan_of(once).factored.items()
    }
    assert "twice" in plan.factored
    assert plan.macs == survey(residual, example).macs
    assert plan.total(Unit.MACS) == survey(twice, example).macs
    save_compressed(twice, SOURCE, tmp_path / "twice.safetensors")
    x = torch.randn(2, 3, 16, 16)
    loaded = load_compressed(tmp_path / "twice.safetensors", build, trust=SOURCE.model)
    assert torch.equal(loaded.model(x), twice(x))


@pytest.mark.parametrize("trust", [None, "", "own:residual", "own", "os:system"])
def test_a_file_chooses_no_code(file: Path, trust: str | None) -> None:
    def build(_source: Source) -> nn.Module:
        raise AssertionError("built")

    with pytest.raises(CheckpointError, match=r"is built by own:Residual, .*; if that is .* --trust own:Residual"):
        load_compressed(file, build, trust=trust)
