from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from dprp.export import ExportError, ModelFileError, onnx_macs, op_counts, read_metadata, to_onnx

# SmallNet on 12 x 12: conv1, conv2 in 4 groups of 2 channels, conv3 with stride 2 (12 -> 5), fc.
NET_MACS = 8 * 3 * 9 * 144 + 8 * 2 * 9 * 144 + 16 * 8 * 9 * 25 + 16 * 6


def test_macs_equal_the_hand_formula(file: Path) -> None:
    assert onnx_macs(file) == NET_MACS
    assert onnx_macs(file, (5, 3, 12, 12)) == 5 * NET_MACS


def test_macs_of_uneven_kernels_dilation_transpose_and_matmul(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 6, (3, 1), stride=(2, 1), padding=(1, 0), groups=2),  # 11 x 9 -> 6 x 9
        nn.Conv2d(6, 5, (1, 3), dilation=(1, 2)),  # -> 6 x 5
        nn.ConvTranspose2d(5, 8, 2, stride=2),  # 6 x 5 read once per tap
        nn.Linear(10, 7, bias=False),  # on the last axis: MatMul on 8 x 12 rows
    )
    path = tmp_path / "a.onnx"
    to_onnx(model, torch.randn(1, 4, 11, 9), path)
    assert set(op_counts(path)) >= {"Conv", "ConvTranspose", "MatMul"}
    by_hand = 6 * 2 * 3 * 6 * 9 + 5 * 6 * 3 * 6 * 5 + 5 * 8 * 4 * 6 * 5 + 8 * 12 * 10 * 7
    assert onnx_macs(path) == by_hand


@pytest.mark.parametrize(("transposed", "shape"), [(0, (4, 10)), (1, (10, 4))])
def test_macs_of_gemm_with_a_transposed_input(transposed: int, shape: tuple[int, int], tmp_path: Path) -> None:
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transA=transposed)
    path = _save(tmp_path, node, shape, helper.make_tensor("w", TensorProto.FLOAT, (10, 3), [0.0] * 30))
    assert onnx_macs(path, shape) == 4 * 10 * 3


def test_operators_that_are_not_counted_are_reported(tmp_path: Path) -> None:
    node = helper.make_node("Einsum", ["x", "w"], ["y"], name="mix", equation="ij,jk->ik")
    path = _save(tmp_path, node, (4, 10), helper.make_tensor("w", TensorProto.FLOAT, (10, 3), [0.0] * 30))
    with pytest.raises(ExportError, match="node mix is Einsum, whose MACs are not known here"):
        onnx_macs(path, (4, 10))


def test_shapes_that_do_not_fit_are_said(file: Path) -> None:
    for shape in ((1, 3, 16, 16), (3, 12, 12), (0, 3, 12, 12)):
        with pytest.raises(ExportError, match=r"does not fit \(batch, 3, 12, 12\)"):
            onnx_macs(file, shape)


@pytest.mark.parametrize("content", [b"\0", b"not a model"])
@pytest.mark.parametrize("read", [op_counts, onnx_macs, read_metadata])
def test_files_that_are_not_models(read: object, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    assert callable(read)
    with pytest.raises(ModelFileError, match=r"a\.onnx: not an ONNX model or cut short"):
        read(path)
    with pytest.raises(ModelFileError, match="no such file"):
        read(tmp_path / "absent.onnx")


def _save(folder: Path, node: onnx.NodeProto, shape: tuple[int, int], weight: TensorProto) -> Path:
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "one.onnx"
    )
    return folder / "one.onnx"
