"""Names of nodes that say which layer they are: "layer1.0.conv1/Conv", or "fc/MatMul" and "fc/Add".

torch's exporter knows the module that each node comes from, and calls it node_conv2d_7.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict

import onnx

_SCOPES = "pkg.torch.onnx.name_scopes"

_FIRST = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""What a layer with a weight begins with; a bias may be added after it."""


def name_nodes(model: onnx.ModelProto) -> None:
    """Names every node by its module and operator, in place; the second of the same name gets a number.

    Args:
        model: as the exporter left it, with its notes.
    """
    seen: Counter[str] = Counter()
    for node in model.graph.node:
        scope = _scope(node)
        name = f"{scope}/{node.op_type}" if scope else node.op_type
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name] - 1}"


def layer_outputs(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Names of the tensors that each layer with a weight gives, one for each call in the order of the graph."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    last = ""
    for node in model.graph.node:
        layer, _, operator = node.name.rpartition("/")
        if not layer or not operator.startswith(node.op_type):
            continue
        if node.op_type in _FIRST:
            found[layer].append(node.output[0])
            last = layer
        elif node.op_type == "Add" and layer == last:  # the bias of a product
            found[layer][-1] = node.output[0]
            last = ""
    return dict(found)


def _scope(node: onnx.NodeProto) -> str:
    """The innermost module, "" where there is none."""
    notes = {entry.key: entry.value for entry in node.metadata_props}
    try:
        *scopes, _ = ast.literal_eval(notes.get(_SCOPES, "['']"))
    except (SyntaxError, ValueError):
        return ""
    return str(scopes[-1]) if scopes else ""
