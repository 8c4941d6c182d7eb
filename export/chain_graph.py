"""The small ONNX graph in which a chain of layers is timed, built without torch.

ONNX Runtime keeps convolutions in a blocked layout (NCHWc) and puts reorder nodes where blocked and plain layout
meet. In a network the neighbours of a layer are blocked too; alone in a graph, it would pay for reordering at
both ends. So a convolution stands between two thin ones that are not counted:

    input (1, 1, H, W) -> before: 1x1, 1 -> inputs -> layer0 -> layer1 ... -> after: 1x1, outputs -> 8

A reorder node between `before` and `after` is one that the chain would cause in a network as well (a rank that
the blocked layout does not take, say), and counts. Images come to a network unblocked: at most 4 input channels
are taken for an image and get no `before`. Linear layers have no layouts, and stand alone.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .plain_layer import CONVOLUTION, LINEAR, Chain, PlainLayer
from .session import Array

BEFORE, AFTER = "before", "after"
_IMAGE_CHANNELS = 4
_AFTER_CHANNELS = 8
# Repeated to fill every weight: drawing millions of random numbers would take longer than the timing does.
_NOISE = np.random.default_rng(0).standard_normal(4099).astype(np.float32)


def chain_model(chain: Chain) -> onnx.ModelProto:
    """A model of one input and one output around a chain, with random weights.

    Args:
        chain: layers that `check_chain` accepts.

    Returns:
        Takes (1, 1, H, W), or (1, inputs, H, W) from an image; linear: (1, inputs), or (1, rows, inputs) for more
        than one row. Nodes and their outputs are called before, layer0, layer1, ..., after.
    """
    first, last = chain[0], chain[-1]
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    layers = [(f"layer{index}", layer) for index, layer in enumerate(chain)]
    if first.kind == LINEAR:
        rows = [] if first.width == 1 else [first.width]
        shape, result_shape = [1, *rows, first.inputs], [1, *rows, last.outputs]
    else:
        shape = [1, first.inputs, first.height, first.width]
        result_shape = [1, _AFTER_CHANNELS, *last.output_map]
        if first.inputs > _IMAGE_CHANNELS:
            shape[1] = 1
            layers.insert(0, (BEFORE, PlainLayer(CONVOLUTION, 1, first.inputs, bias=False)))
        layers.append((AFTER, PlainLayer(CONVOLUTION, last.outputs, _AFTER_CHANNELS, bias=False)))
    source = "input"
    for name, layer in layers:
        build = _convolution if layer.kind == CONVOLUTION else _linear
        build(layer, source, name, nodes, weights)
        source = name
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, result_shape)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _convolution(
    layer: PlainLayer, source: str, name: str, nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto]
) -> None:
    parameters = [_noise((layer.outputs, layer.inputs // layer.groups, *layer.kernel), f"{name}.weight")]
    if layer.bias:
        parameters.append(_noise((layer.outputs,), f"{name}.bias"))
    weights += parameters
    top, bottom, left, right = layer.padding
    nodes.append(
        helper.make_node(
            "Conv",
            [source, *(tensor.name for tensor in parameters)],
            [name],
            name=name,
            kernel_shape=layer.kernel,
            strides=layer.stride,
            pads=(top, left, bottom, right),
            dilations=layer.dilation,
            group=layer.groups,
        )
    )


def _linear(
    layer: PlainLayer, source: str, name: str, nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto]
) -> None:
    """Gemm for one row and MatMul with Add for several, as torch exports them."""
    bias = [_noise((layer.outputs,), f"{name}.bias")] if layer.bias else []
    if layer.width == 1:
        weight = _noise((layer.outputs, layer.inputs), f"{name}.weight")
        operands = [source, weight.name, *(tensor.name for tensor in bias)]
        nodes.append(helper.make_node("Gemm", operands, [name], name=name, transB=1))
    else:
        weight = _noise((layer.inputs, layer.outputs), f"{name}.weight")
        product = f"{name}.product" if bias else name
        nodes.append(helper.make_node("MatMul", [source, weight.name], [product], name=product))
        for tensor in bias:
            nodes.append(helper.make_node("Add", [product, tensor.name], [name], name=name))
    weights += [weight, *bias]


def _noise(shape: tuple[int, ...], name: str) -> onnx.TensorProto:
    """Normal, of a spread that keeps a layer's output near its input's: denormal numbers would be slow."""
    values: Array = np.resize(_NOISE, shape) / np.float32(math.sqrt(math.prod(shape[1:]) or 1))
    return numpy_helper.from_array(values, name)
