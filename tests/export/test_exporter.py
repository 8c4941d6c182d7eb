from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import dprp
from dprp.export import (
    ExportError,
    ModelFileError,
    VerificationError,
    op_counts,
    read_metadata,
    to_onnx,
    verify,
)

IMAGES = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(7))


def test_odd_batches_agree_with_torch(net: nn.Module, file: Path) -> None:
    result = verify(net, file, [torch.randn(n, 3, 12, 12) for n in (1, 2, 3, 7, 16)], tolerance=1e-5)
    assert result.ok
    assert 0 < result.max_abs < 1e-4
    assert result.top1_agreement == 1.0
    assert (result.batches, result.images) == (5, 29)


def test_batchnorm_is_folded_and_only_the_models_own_operators_are_there(file: Path) -> None:
    assert op_counts(file) == {"Conv": 3, "Relu": 3, "Add": 1, "ReduceMean": 1, "Gemm": 1}


def test_one_file_close_to_the_size_of_its_weights(net: nn.Module, file: Path) -> None:
    assert [entry.name for entry in file.parent.iterdir()] == ["net.onnx"]
    weights = sum(tensor.numel() * 4 for tensor in net.parameters())
    # Names, shapes and attributes of nine nodes; the exporter's notes alone would be 20,000 bytes.
    assert weights - 500 < file.stat().st_size < weights + 4000


def test_no_source_path_and_no_exporter_note_in_the_file(file: Path) -> None:
    content = file.read_bytes()
    for trace in (b".py", b'File "', b"stack_trace", b"pkg.", str(Path(__file__).parent).encode()):
        assert trace not in content
    model = onnx.load(file)
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert not any(entry.metadata_props for entry in (*model.graph.input, *model.graph.output))


def test_names_and_free_batch(file: Path) -> None:
    graph = onnx.load(file).graph
    assert [entry.name for entry in graph.input] == ["input"]
    assert [entry.name for entry in graph.output] == ["output"]
    for entry, rest in ((graph.input[0], [3, 12, 12]), (graph.output[0], [6])):
        batch, *others = entry.type.tensor_type.shape.dim
        assert batch.dim_param == "batch"
        assert [dim.dim_value for dim in others] == rest


def test_metadata_round_trip(file: Path) -> None:
    assert read_metadata(file) == {"plan": '{"ranks": [1, 2]}', "note": "größer"}


def test_metadata_must_be_text(net: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="metadata: 'rank' is int, not text"):
        to_onnx(net, IMAGES, tmp_path / "a.onnx", metadata={"rank": 3})  # type: ignore[dict-item]
    assert not list(tmp_path.iterdir())


def test_model_random_state_and_logging_are_left_alone(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, level = torch.get_rng_state(), logging.getLogger("torch.onnx").level
    assert to_onnx(model, IMAGES, tmp_path / "a.onnx").ok
    assert [module.training for module in model] == [True, False, True]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert logging.getLogger("torch.onnx").level == level


def test_nothing_is_printed(net: nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum() > 0 else x

    to_onnx(net, IMAGES, tmp_path / "a.onnx")
    with pytest.raises(ExportError, match="Branch: torch cannot export it"):
        to_onnx(Branch(), IMAGES, tmp_path / "b.onnx")
    assert tuple(capfd.readouterr()) == ("", "")


def test_several_inputs(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b.mean((1, 2, 3), keepdim=True)

    path = tmp_path / "sum.onnx"
    assert to_onnx(Sum(), (IMAGES, IMAGES[:, :1]), path).ok
    inputs = onnx.load(path).graph.input
    assert [entry.name for entry in inputs] == ["input_0", "input_1"]
    assert [entry.type.tensor_type.shape.dim[0].dim_param for entry in inputs] == ["batch", "batch"]


def test_opset_is_kept_or_refused(net: nn.Module, tmp_path: Path) -> None:
    model = nn.Conv2d(3, 4, 3)
    to_onnx(model, IMAGES, tmp_path / "a.onnx", opset=19)
    assert [entry.version for entry in onnx.load(tmp_path / "a.onnx").opset_import] == [19]
    with pytest.raises(ExportError, match=r"opset: 7 is not possible|torch cannot export"):
        to_onnx(net, IMAGES, tmp_path / "b.onnx", opset=7)  # torch returns opset 18 and only logs
    assert not (tmp_path / "b.onnx").exists()


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


def test_differing_outputs_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"noise\.onnx: not written, outputs differ from torch on 12 images"):
        to_onnx(Noise(), IMAGES, tmp_path / "noise.onnx")
    assert not list(tmp_path.iterdir())


def test_differing_outputs_leave_an_existing_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "noise.onnx"
    path.write_bytes(b"precious")
    with pytest.raises(VerificationError):
        to_onnx(Noise(), IMAGES, path, force=True)
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


def test_tolerance_decides(tmp_path: Path) -> None:
    assert to_onnx(Noise(), IMAGES, tmp_path / "noise.onnx", tolerance=10.0).max_rel > 0.1


def test_existing_file_is_kept_without_force(net: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"precious")
    with pytest.raises(ModelFileError, match=r"a\.onnx: exists already; pass --force \(force=True\)"):
        to_onnx(net, IMAGES, path)
    assert path.read_bytes() == b"precious"
    to_onnx(net, IMAGES, path, force=True)
    assert op_counts(path)["Conv"] == 3


def test_missing_folder_and_folder_as_file(net: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"the folder .*absent does not exist; make it first"):
        to_onnx(net, IMAGES, tmp_path / "absent" / "a.onnx")
    with pytest.raises(ModelFileError, match="is a folder"):
        to_onnx(net, IMAGES, tmp_path, force=True)


class Factors(nn.Linear):
    def fuse(self) -> nn.Module:
        return self


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (nn.Sequential(nn.Flatten(), nn.Sequential(Factors(432, 2))), "layer 1.0 is still factorised"),
        (Factors(12, 2), "Factors is still factorised"),
    ],
)
def test_unfused_layers_are_refused(model: nn.Module, text: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=rf"^{re.escape(text)}: call fuse\(model\) first\.$"):
        to_onnx(model, IMAGES, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_training_wrapper_is_refused(net: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"DataParallel: is a training wrapper\. Export model\.module"):
        to_onnx(nn.DataParallel(net), IMAGES, tmp_path / "a.onnx")


class Shape(nn.Module):
    def forward(self, x: Tensor) -> tuple[int, ...]:
        return tuple(x.shape)


@dataclass
class Scores:
    logits: Tensor
    hidden: Tensor | None = None


class Several(nn.Module):
    """Gives what it holds in a kind of its own."""

    def __init__(self, holds: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.holds = nn.Linear(4, 3), holds

    def forward(self, x: Tensor, other: Tensor | None = None, *, scale: float = 1.0) -> Any:
        return self.holds(self.layer(x if other is None else x + other), x * scale)


X = torch.randn(4, 4)


@pytest.mark.parametrize(
    ("example", "inputs", "holds", "outputs"),
    [
        (X, ["input"], lambda y, _: Scores(y), ["logits"]),
        ((X, X), ["input_0", "input_1"], lambda y, z: (y, z), ["output_0", "output_1"]),
        ({"x": X, "scale": 2.0}, ["x"], lambda y, z: {"out": y, "more": [z, {"x": z}]}, ["out", "more_0", "x_out"]),
        (dprp.Inputs(X, other=X), ["input_0", "other"], lambda y, z: Scores(y, z), ["logits", "hidden"]),
    ],
)
def test_several_inputs_and_outputs_have_names(
    example: Any, inputs: list[str], holds: Callable[[Tensor, Tensor], Any], outputs: list[str], tmp_path: Path
) -> None:
    result = to_onnx(Several(holds).eval(), example, tmp_path / "a.onnx")
    assert result.ok
    assert result.top1_agreement == 1.0
    graph = onnx.load(tmp_path / "a.onnx").graph
    assert [entry.name for entry in graph.input] == inputs
    assert [entry.name for entry in graph.output] == outputs
    assert {entry.name for entry in graph.initializer} >= {"layer.weight", "layer.bias"}
    assert verify(Several(holds).eval(), tmp_path / "a.onnx", [example]).ok is False  # other weights


@pytest.mark.parametrize(
    ("model", "example", "text"),
    [
        (Shape(), IMAGES, "Shape: forward gives no tensor. Wrap the model in a module that returns one"),
        (nn.Conv2d(5, 1, 3), IMAGES, r"Conv2d: forward fails on inputs of shape \(2, 3, 12, 12\)"),
        (nn.ReLU(), IMAGES[:0], "has no image in dimension 0"),
        (nn.ReLU(), "cat.png", "example: not a tensor"),
    ],
)
def test_what_cannot_be_exported_is_said(model: nn.Module, example: Tensor, text: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=text):
        to_onnx(model, example, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_a_type_that_onnx_runtime_cannot_run_is_said_under_the_files_own_name(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"half\.onnx: ONNX Runtime .* cannot load it"):
        to_onnx(nn.Linear(12, 2).bfloat16(), IMAGES.bfloat16(), tmp_path / "half.onnx")
    assert not list(tmp_path.iterdir())


def test_float16_is_half_as_large_and_has_its_own_tolerance(net: nn.Module, file: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.onnx"
    result = to_onnx(net, IMAGES, half, half=True, metadata={"a": "b"})
    assert result.tolerance == 1e-2
    assert 1e-6 < result.max_rel < 1e-2
    assert half.stat().st_size < 0.7 * file.stat().st_size
    graph = onnx.load(half).graph
    kinds = {entry.data_type for entry in graph.initializer if "weight" in entry.name}
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert {entry.type.tensor_type.elem_type for entry in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}
    assert read_metadata(half) == {"a": "b"}
    with pytest.raises(VerificationError, match="not written, outputs differ from torch"):
        to_onnx(net, IMAGES, tmp_path / "strict.onnx", half=True, tolerance=1e-7)


def test_a_model_in_float16_is_compared_as_one(net: nn.Module, tmp_path: Path) -> None:
    assert to_onnx(copy.deepcopy(net).half(), IMAGES.half(), tmp_path / "half.onnx").tolerance == 1e-2
