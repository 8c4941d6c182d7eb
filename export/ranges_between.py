"""Ranges of the channels between two products, drawn together for integers of 8 bits.

Nothing stands between the two factors of a low-rank layer, so that a channel between them may be scaled at will: what
the first one's weights take on, the second one's give back. Integers of 8 bits have one step for all channels of an
activation: where one channel is a hundred times as large as another, nothing of the other is left. But the second
one's weights have one step for all channels, too, and an error of weights is the same at all places and adds up,
where one of activations averages out. So ranges do not become equal, but meet on the way.

Source: cross-layer equalisation, Nagel et al. (2019), "Data-free quantization through weight equalization", with
ranges as seen on images; between products no property of an activation is needed. How far they go is ours, measured
in docs/RESULTS.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from .session import Array, infer, open_session

_FARTHEST = 1e4
"""Between the smallest and the largest range that count: what hardly moves stays small."""

_Pair = tuple[onnx.NodeProto, onnx.NodeProto]


def draw_together(model: onnx.ModelProto, batches: Sequence[Array], part: float, label: str) -> tuple[str, ...]:
    """Scales the channels between any two products that follow each other. In place; the function stays.

    Args:
        model: of one input.
        batches: images (N, ...), to find ranges on.
        part: of the way to equal ranges, 0..1.
        label: what errors call the file.

    Returns:
        Names of the first nodes of these pairs, whose outputs have been scaled.

    Raises:
        ModelFileError: the model cannot take the images.
    """
    weights = {entry.name: entry for entry in model.graph.initializer}
    pairs = list(_pairs(model.graph, weights))
    for (first, second), ranges in zip(pairs, _ranges(model, pairs, batches, label), strict=True):
        most = ranges.max()
        if not most > 0:
            continue  # what gives nothing may be scaled by 1
        scale = (most / np.maximum(ranges, most / _FARTHEST)) ** part
        for name in first.input[1:]:
            _multiply(weights[name], scale, _output_axis(first, weights[name]))
        _multiply(weights[second.input[1]], 1 / scale, _input_axis(second))
    return tuple(first.name for first, _ in pairs)


def _pairs(graph: onnx.GraphProto, weights: dict[str, onnx.TensorProto]) -> Iterator[_Pair]:
    """Products of which the second alone reads what the first gives, each with weights of its own."""
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(entry.name for entry in graph.output)
    makers = {node.output[0]: node for node in graph.node if _is_product(node, weights, readers)}
    for second in makers.values():
        first = makers.get(second.input[0])
        if first is not None and readers[second.input[0]] == 1:
            yield first, second


def _is_product(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto], readers: Counter[str]) -> bool:
    own = all(name in weights and readers[name] == 1 for name in node.input[1:])
    if not own or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return False
    kernel, *bias = (weights[name].dims for name in node.input[1:])
    one_matrix = node.op_type == "Conv" or len(kernel) == 2  # not one for each of several batches
    return one_matrix and not _attribute(node, "transA", 0) and all(len(dims) == 1 for dims in bias)


def _ranges(model: onnx.ModelProto, pairs: Sequence[_Pair], batches: Sequence[Array], label: str) -> Iterator[Array]:
    """The largest value of each channel between two products, over all images."""
    if not pairs:
        return
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=first.output[0]) for first, _ in pairs)
    session = open_session(watched.SerializeToString(), label=label)
    most: list[Array] = []
    for batch in batches:
        seen = zip(pairs, infer(session, [batch], label), strict=True)
        found = [_of_channels(values, 1 if first.op_type == "Conv" else -1) for (first, _), values in seen]
        most = [np.maximum(*both) for both in zip(most, found, strict=True)] if most else found
    yield from most


def _of_channels(values: Array, axis: int) -> Array:
    largest: Array = np.abs(np.moveaxis(values, axis, 0)).reshape(values.shape[axis], -1).max(1)
    return largest


def _output_axis(node: onnx.NodeProto, tensor: onnx.TensorProto) -> int:
    """Where a product's weight or bias has its outputs."""
    if node.op_type == "Conv" or len(tensor.dims) == 1 or _attribute(node, "transB", 0):
        return 0
    return 1


def _input_axis(node: onnx.NodeProto) -> int:
    """Where a product's weight has its inputs."""
    return 1 if node.op_type == "Conv" or _attribute(node, "transB", 0) else 0


def _multiply(tensor: onnx.TensorProto, scale: Array, axis: int) -> None:
    """Multiplies a tensor along an axis; of a convolution in groups, each group of outputs has inputs of its own."""
    values = numpy_helper.to_array(tensor)
    groups = len(scale) // values.shape[axis]
    parts = values.reshape(groups, values.shape[0] // groups, *values.shape[1:])
    shape = [1] * parts.ndim
    shape[0], shape[axis + 1] = groups, values.shape[axis]
    scaled = (parts * scale.reshape(shape)).reshape(values.shape).astype(values.dtype)
    tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))


def _attribute(node: onnx.NodeProto, name: str, otherwise: int) -> int:
    return next((entry.i for entry in node.attribute if entry.name == name), otherwise)
