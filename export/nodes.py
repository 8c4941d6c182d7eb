"""What a file is made of: its operators and their multiply-adds, counted from the graph alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import onnx

from .errors import ExportError, ModelFileError, first_line
from .modelfile import load_model

Shapes = dict[str, tuple[int, ...]]

_COUNTED = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
# Operators that multiply and that nobody counts here; reported instead of taken for zero.
_UNCOUNTED = frozenset(
    {"Attention", "ConvInteger", "DeformConv", "Einsum", "GRU", "If", "LSTM"}
    | {"Loop", "MatMulInteger", "QLinearConv", "QLinearMatMul", "RNN", "Scan"}
)


def op_counts(path: str | Path) -> dict[str, int]:
    """How many nodes of each type a file has, the most frequent first.

    Args:
        path: an ONNX file.

    Returns:
        Operator type, such as "Conv", to its number of nodes.

    Raises:
        ModelFileError: no such file, or not an ONNX model.
    """
    return dict(Counter(node.op_type for node in load_model(path).graph.node).most_common())


def onnx_macs(path: str | Path, input_shape: Sequence[int] | None = None) -> int:
    """Multiply-adds of one run: those of its Conv, ConvTranspose, Gemm and MatMul nodes.

    Biases, normalisation, activations and pooling count as nothing, as is usual for MACs. Every product
    counts, also those with padding.

    Args:
        path: an ONNX file with one input.
        input_shape: (N, ...) of the run, each >= 1; None takes the file's own shape at a batch of 1.

    Returns:
        MACs, 1 MAC = 1 multiply-add.

    Raises:
        ModelFileError: no such file, or not an ONNX model.
        ExportError: a shape that does not fit, or an operator that multiplies and is not counted here.
    """
    model = load_model(path)
    shapes = _infer_shapes(model, input_shape, str(path))
    total = 0
    for node in model.graph.node:
        if node.op_type in _UNCOUNTED or node.domain not in ("", "ai.onnx"):
            kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise ExportError(f"{path}: node {node.name} is {kind}, whose MACs are not known here. Count it by hand.")
        if node.op_type in _COUNTED:
            for value in (*node.input[:2], node.output[0]):
                if 0 in shapes.get(value, (0,)):
                    raise ExportError(f"{path}: the shape of {value} is not known. Give input_shape in full.")
            total += _node_macs(node, shapes)
    return total


def _node_macs(node: onnx.NodeProto, shapes: Shapes) -> int:
    if node.op_type == "Conv":
        return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
    if node.op_type == "ConvTranspose":
        return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])
    if node.op_type == "Gemm":
        transposed = any(entry.name == "transA" and entry.i for entry in node.attribute)
        return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else 1]
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


def _infer_shapes(model: onnx.ModelProto, input_shape: Sequence[int] | None, name: str) -> Shapes:
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    inputs = [entry for entry in model.graph.input if entry.name not in weights]
    if len(inputs) != 1:
        raise ExportError(f"{name}: has {len(inputs)} inputs, MACs are counted for files with one.")
    dims = inputs[0].type.tensor_type.shape.dim
    shape = tuple(input_shape) if input_shape is not None else (1, *(dim.dim_value for dim in dims[1:]))
    fits = len(shape) == len(dims) and all(size >= 1 for size in shape)
    fits = fits and all(dim.dim_value in (0, size) for dim, size in zip(dims, shape, strict=False))
    if not fits:
        wanted = ", ".join(str(dim.dim_value or dim.dim_param or "?") for dim in dims)
        raise ExportError(
            f"{name}: input shape {shape} does not fit ({wanted}). Give one whole number per dimension."
        )
    for dim, size in zip(dims, shape, strict=True):
        dim.dim_value = size
    # What the file says about its inner shapes names the batch, which now has a number.
    del model.graph.value_info[:]
    for entry in model.graph.output:
        entry.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ModelFileError(f"{name}: shapes do not fit together ({first_line(error)}). Export it again.") from error
    shapes: Shapes = dict(weights)
    for entry in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        shapes[entry.name] = tuple(dim.dim_value for dim in entry.type.tensor_type.shape.dim)
    return shapes
