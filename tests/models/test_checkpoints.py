import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dprp.models import WeightsError, build, digits_cnn, load_weights, read_state_dict


def copy_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(model: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


class WritesMarker:
    """A pickle of this runs `open(marker, "w")` when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("suffix", [".pth", ".th", ".pt", ".PTH", ".safetensors"])
def test_every_kind_of_file_round_trips(tmp_path: Path, suffix: str) -> None:
    source, target = digits_cnn(), digits_cnn()
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(source.state_dict(), path, metadata={"by": "someone"})
    else:
        torch.save(source.state_dict(), path)
    load_weights(target, str(path))
    assert same(target, source.state_dict())


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}},
        lambda state: {"model": {"state_dict": state}},
        lambda state: prefixed(state, "module."),
        lambda state: prefixed(state, "_orig_mod."),
        lambda state: {"state_dict": prefixed(state, "_orig_mod.module.")},
        lambda state: state | {"epoch": 3},
    ],
)
def test_wrappers_and_prefixes_are_undone(
    tmp_path: Path, wrap: Callable[[dict[str, Tensor]], dict[str, object]]
) -> None:
    state = digits_cnn().state_dict()
    torch.save(wrap(state), tmp_path / "w.pth")
    read = read_state_dict(tmp_path / "w.pth")
    assert list(read) == list(state)
    assert all(torch.equal(read[key], state[key]) for key in state)


def test_prefix_stays_unless_every_key_has_it(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w.pth")
    assert set(read_state_dict(tmp_path / "w.pth")) == {"module.a", "b"}


def test_old_densenet_names_are_today_s(tmp_path: Path) -> None:
    old = {"features.denseblock1.denselayer1.norm.1.weight": torch.ones(2)}
    torch.save(old, tmp_path / "w.pth")
    assert list(read_state_dict(tmp_path / "w.pth")) == ["features.denseblock1.denselayer1.norm1.weight"]


def test_missing_batch_counters_are_tolerated(tmp_path: Path) -> None:
    source, target = digits_cnn(), digits_cnn()
    state = {k: v for k, v in source.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pth")
    load_weights(target, tmp_path / "w.pth")
    assert same(target, source.state_dict())


def test_auxiliary_heads_in_the_file_are_tolerated(tmp_path: Path) -> None:
    model = build("googlenet", classes=2)
    torch.save(model.state_dict() | {"aux1.fc1.weight": torch.ones(2)}, tmp_path / "w.pth")
    load_weights(model, tmp_path / "w.pth")


def test_code_in_a_pickle_is_refused_and_never_runs(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for protocol, name in ((2, "a.pth"), (4, "b.pt"), (5, "c.th")):
        with (tmp_path / name).open("wb") as file:
            pickle.dump({"state_dict": WritesMarker(marker)}, file, protocol=protocol)
    torch.save({"weight": torch.ones(2), "extra": WritesMarker(marker)}, tmp_path / "d.pth")
    for name in ("a.pth", "b.pt", "c.th", "d.pth"):
        with pytest.raises(WeightsError, match=r"holds code.*refused.*torch.save\(model.state_dict\(\), path\)"):
            read_state_dict(tmp_path / name)
        assert not marker.exists(), name
    with (tmp_path / "a.pth").open("rb") as file:
        pickle.load(file)["state_dict"].close()
    assert marker.exists(), "the pickle does nothing, so the test above showed nothing"


def test_whole_pickled_model_is_refused_naming_its_class(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"holds code \(torch.nn.modules.linear.Linear\)"):
        read_state_dict(tmp_path / "w.pt")


def test_missing_unknown_and_empty_files(tmp_path: Path) -> None:
    (tmp_path / "w.onnx").write_bytes(b"x")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "folder.pth").mkdir()
    known = r"\.pth, \.th, \.pt, \.safetensors"
    for name, message in (
        ("none.pth", rf"none\.pth: no such file; check the path, or give that of a checkpoint \({known}\)"),
        ("folder.pth", rf"folder\.pth: is a folder; give the path of a checkpoint \({known}\)"),
        ("w.onnx", rf"w\.onnx: unknown kind of checkpoint '\.onnx'; known are {known}"),
        ("empty.pth", r"empty\.pth: the file is empty; copy or download it again"),
        ("none.txt", r"none\.txt: no such file"),
    ):
        with pytest.raises(WeightsError, match=message):
            read_state_dict(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind root")
def test_file_without_permission(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"x")
    (tmp_path / "w.pth").chmod(0)
    with pytest.raises(WeightsError, match=r"cannot be read .*check its permissions"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("keep", [0.001, 0.01, 0.5, 0.9, 0.999])
def test_truncated_files(tmp_path: Path, kind: str, keep: float) -> None:
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    state = digits_cnn().state_dict()
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    os.truncate(path, int(path.stat().st_size * keep))
    with pytest.raises(WeightsError, match=r"the file is truncated or corrupt \(.+\); copy or download") as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\0" * 99, b"<!DOCTYPE html><html>", b"version https://git-lfs", b"PK\x03\x04"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_of_something_else(tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / f"w{suffix}").write_bytes(content)
    with pytest.raises(WeightsError, match="truncated or corrupt"):
        read_state_dict(tmp_path / f"w{suffix}")


def test_files_without_tensors(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "net": {"weight": torch.ones(1)}}, tmp_path / "a.pth")
    torch.save([torch.ones(1)], tmp_path / "b.pth")
    save_file({}, tmp_path / "c.safetensors")
    for name, message in (
        ("a.pth", r"holds no tensors, only epoch, net; .*state_dict, model_state_dict, model"),
        ("b.pth", r"holds a list, not a state dict"),
        ("c.safetensors", r"holds no tensors, only nothing"),
    ):
        with pytest.raises(WeightsError, match=message):
            read_state_dict(tmp_path / name)


def test_compressed_checkpoint_of_ours_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors", metadata={"dprp_format": "1"})
    with pytest.raises(WeightsError, match=r"compressed checkpoint of dprp.*pass it as MODEL instead"):
        read_state_dict(tmp_path / "w.safetensors")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, bad: float, dtype: torch.dtype) -> None:
    model = digits_cnn()
    before = copy_of(model)
    state = copy_of(model)
    state["block2.conv.weight"] = state["block2.conv.weight"].to(dtype)
    state["block2.conv.weight"][3, 1, 0, 2] = bad
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"block2\.conv\.weight holds values that are not finite"):
        load_weights(model, tmp_path / "w.pth")
    assert same(model, before)


def test_sparse_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"a is quantised, sparse or without data"):
        read_state_dict(tmp_path / "w.pth")


def test_other_keys_and_shapes_are_listed_and_the_model_stays(tmp_path: Path) -> None:
    model = digits_cnn()
    before = copy_of(model)
    state = {key: torch.zeros_like(value) for key, value in digits_cnn().state_dict().items()}
    del state["head.bias"]
    state["extra"] = torch.ones(2)
    state["block1.conv.weight"] = torch.ones(5, 1, 3, 3)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as caught:
        load_weights(model, tmp_path / "w.pth")
    message = str(caught.value)
    assert "1 missing (head.bias)" in message
    assert "1 unexpected (extra)" in message
    assert "block1.conv.weight: 5 x 1 x 3 x 3 in the file, 64 x 1 x 3 x 3 in the model" in message
    assert "\n" not in message
    assert same(model, before)


def test_long_lists_are_capped(tmp_path: Path) -> None:
    torch.save({f"k{number}": torch.ones(1) for number in range(50)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"50 unexpected \(k0, k1, k2, k3, k4, k5 and 44 more\)"):
        load_weights(digits_cnn(), tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["digits_cnn", "squeezenet1_1"])
def test_another_head_says_how_many_classes(tmp_path: Path, name: str) -> None:
    torch.save(build(name, classes=7).state_dict(), tmp_path / "w.pth")
    model = build(name, classes=10)
    before = copy_of(model)
    with pytest.raises(WeightsError, match=r"has 7 classes, the model 10 .*pass classes=7 / --classes 7"):
        load_weights(model, tmp_path / "w.pth")
    assert same(model, before)


def test_two_layers_of_another_shape_are_not_called_a_head(tmp_path: Path) -> None:
    state = digits_cnn().state_dict()
    state["head.weight"], state["head.bias"] = torch.ones(7, 96), torch.ones(7)
    state["block1.bn.weight"] = torch.ones(7)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="3 of another shape") as caught:
        load_weights(digits_cnn(), tmp_path / "w.pth")
    assert "--classes" not in str(caught.value)


def test_torchvision_checkpoints_load(shared_checkpoints: Path) -> None:
    for name in ("squeezenet1_1", "mobilenet_v2"):
        load_weights(build(name), shared_checkpoints / f"{name}.pth")


def test_a_dictionary_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict[str, object] = {"epoch": 1}
    content["state_dict"] = content
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="holds no tensors, only epoch, state_dict"):
        read_state_dict(tmp_path / "w.pth")


def test_an_expanded_tensor_is_not_unfolded(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1).expand(100_000, 100_000)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w claims shape \(100000, 100000\) on 4 bytes of data, as expanded"):
        read_state_dict(tmp_path / "w.pth")


def test_an_archive_that_unpacks_to_far_more_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", b"")
        archive.writestr("w/data/0", bytes(20_000_000))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(WeightsError, match=r"bytes claim to hold 20,000,000; no checkpoint is packed so tightly"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2])
def test_other_kinds_of_numbers_are_refused_by_name(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save({"w": torch.ones(3).to(dtype)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=rf"w is {str(dtype).removeprefix('torch.')}; weights are float16"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="FIFOs are a thing of POSIX")
def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth: is not a regular file"):
        read_state_dict(tmp_path / "w.pth")
