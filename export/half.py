"""A graph in float16: for GPUs and NPUs, which compute in it faster, and half as large everywhere."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from .modelfile import load_model


def is_half(path: str | Path) -> bool:
    """Whether a file has weights in float16.

    Raises:
        ModelFileError: no such file, or not ONNX.
    """
    return holds_half(load_model(path))


def holds_half(model: onnx.ModelProto) -> bool:
    """Whether a graph has weights in float16."""
    return any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in model.graph.initializer)


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with weights and arithmetic in float16; inputs and outputs stay in float32.

    What float16 cannot hold is cut off at its largest number, and what is too small for it becomes its smallest.

    Args:
        model: float32.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one for each number that is cut off; the comparison with torch decides
        made = OnnxModel(convert_float_to_float16(model, keep_io_types=True))
    made.topological_sort()  # the casts of inputs come last as they are made
    found: onnx.ModelProto = made.model
    return found
