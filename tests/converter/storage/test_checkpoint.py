"""A compressed checkpoint comes back bit-equal, or is refused with a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
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
from dprp.converter.storage.digest import digest

from ..conftest import Residual

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
    # Whoever means harm can count as well as we do.
    about = {name: metadata[name] for name in ("source", "plan", "tied")}
    save_file(tensors, file, metadata | {"sha256": digest(tensors, about)})
    return file


def set_metadata(**values: str) -> Callable[[dict[str, torch.Tensor], dict[str, str]], None]:
    return lambda _tensors, metadata: metadata.update(values)


def set_tensor(name: str, tensor: torch.Tensor) -> Callable[[dict[str, torch.Tensor], dict[str, str]], None]:
    return lambda tensors, _metadata: tensors.update({name: tensor})


def set_source(**values: object) -> Callable[[dict[str, torch.Tensor], dict[str, str]], None]:
    def change(_tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        metadata["source"] = json.dumps(json.loads(metadata["source"]) | values)

    return change


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
        (set_metadata(dprp_format="3"), r"has format 3, this dprp reads 1 and 2; upgrade dprp"),
        (set_metadata(dprp_format="x" * 999), r"has format x{199}…, this dprp reads"),
        (set_source(classes=2**40), r"classes is 1099511627776; a whole number from 1 to 1,048,576 belongs there"),
        (set_source(classes="10"), r"classes is '10'; a whole number"),
        (
            set_source(input_shape=[3, 65_536, 65_536]),
            r"input_shape is \[3, 65536, 65536\]; one to 4 sizes and",
        ),
        (set_source(input_shape=[3, 0, 16]), r"input_shape is 0; a whole number from 1"),
        (set_source(std=[0.0, 1.0, 1.0]), r"std is 0\.0; a finite number above 0 belongs there"),
        (set_source(mean=[float("nan"), 1.0, 1.0]), r"mean is nan; a finite number belongs there"),
        (set_source(mean=[0.5]), r"there are 1 means and 3 stds for 3 channels"),
        (set_source(labels=["a", "b\n"]), r"a label is 'b.*'; at most 1,000 printable characters"),
        (set_source(labels="cat"), r"labels is 'cat'; a list of at most"),
        (set_source(sha256="0" * 63), r"sha256 is 0{63}; 64 hexadecimal digits belong there"),
        (set_source(model="own:\x1b[31m"), r"model is .*; at most 1,000 printable characters"),
        (set_tensor("norm.num_batches_tracked", torch.tensor(1.5)), r"is floating \[\], the network has I64 \[\]"),
        (set_tensor("head.bias", torch.zeros(10).char()), r"is I8 \[10\], the network has floating \[10\]"),
        (lambda _t, m: m.pop("dprp_format"), r"is a plain safetensors file; pass it as --checkpoint"),
        (set_metadata(plan="{"), r"its metadata does not read \(the plan is not JSON"),
        (set_metadata(source="[]"), r"its metadata does not read"),
        (set_metadata(tied="[]"), r"its metadata does not read \(tied is not a map of names\)"),
        (set_metadata(tied="[" * 100_000), r"its metadata does not read \("),
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


def test_every_bit_counts(file: Path) -> None:
    whole = file.read_bytes()
    content = bytearray(whole)
    for place in (len(content) - 1, len(content) // 2, len(content) - 4000):
        content[place] ^= 1
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"its content is not what was written \(its SHA-256 differs\)"):
            load_compressed(file, build, trust=SOURCE.model)
        content[place] ^= 1
    with safe_open(file, "pt") as opened:
        told = opened.metadata()["plan"]
    file.write_bytes(whole.replace(b'\\"budget\\"', b'\\"budgeT\\"'))
    assert "budget" in told
    with pytest.raises(CheckpointError, match="its metadata does not read"):
        load_compressed(file, build, trust=SOURCE.model)


def test_format_1_still_reads(compressed: nn.Module, file: Path) -> None:
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    del metadata["sha256"]
    told = json.loads(metadata["source"])
    metadata["source"] = json.dumps({key: told[key] for key in ("model", "classes", "input_shape", "mean", "std")})
    assert set(told) - set(json.loads(metadata["source"])) == {"labels", "sha256"}
    save_file(tensors, file, metadata | {"dprp_format": "1"})
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(load_compressed(file, build, trust=SOURCE.model).model(x), compressed(x))


def test_costs_are_counted_and_not_believed(compressed: nn.Module, file: Path) -> None:
    def lie(_tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        plan = json.loads(metadata["plan"])
        plan |= {"params": 1, "macs": 2}
        for layer in plan["layers"]:
            layer["params"] = 3
            layer["macs"] = 4 if layer["form"] else layer["macs"]
        metadata["plan"] = json.dumps(plan)

    assert load_compressed(rewritten(file, lie), build, trust=SOURCE.model).plan == plan_of(compressed)


def compress_to(file: Path, model: nn.Module) -> nn.Module:
    """Of a network that shares nothing, so that it need not be in memory to be compared."""
    model.eval().alias = nn.Identity()
    new = convert(model, plan_ranks(survey(model, torch.zeros(1, 3, 16, 16)), MacBudget(0.5), rank_multiple=2))
    save_compressed(new, replace(SOURCE, model="ours"), file)
    return new


def test_a_network_that_does_not_fit_takes_no_memory(tmp_path: Path) -> None:
    file = tmp_path / "small.safetensors"
    compress_to(file, Residual())
    made: list[nn.Module] = []

    def vast(_source: Source) -> nn.Module:
        made.append(nn.Sequential(nn.Linear(2**20, 2**20), Residual()))  # 4 TiB
        return made[-1]

    with pytest.raises(CheckpointError, match="its plan does not fit its network"):
        load_compressed(file, vast)
    assert all(parameter.is_meta for parameter in made[0].parameters())


class Computing(Residual):
    """Keeps tensors that no state dict has: one computed as it is built, one that is made to be filled in."""

    def __init__(self, *, empty: bool) -> None:
        super().__init__()
        self.scale = torch.empty(1).fill_(2.0) if empty else torch.arange(3).sum()
        self.register_buffer("shift", torch.linspace(0, 1, 10), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.scale + self.shift


@pytest.mark.parametrize("empty", [False, True])
def test_what_no_state_dict_has_is_there(tmp_path: Path, empty: bool) -> None:
    file = tmp_path / "computing.safetensors"
    new = compress_to(file, Computing(empty=empty))

    def build(_source: Source) -> nn.Module:
        built = Computing(empty=empty)
        built.alias = nn.Identity()
        return built

    x = torch.randn(2, 3, 16, 16)
    loaded = load_compressed(file, build).model
    assert torch.equal(loaded(x), new(x))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


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
