"""Taking the exporter's notes out of a model: they hold the user's source paths and bloat the file."""

from __future__ import annotations

from typing import Any

import onnx


def strip_notes(model: onnx.ModelProto) -> None:
    """Remove every doc string and every metadata entry from a model, in place.

    Args:
        model: as the exporter left it: per node a stack trace with local paths, class names and an fx dump.
    """
    _strip(model)
    _strip_graph(model.graph)
    for function in model.functions:
        _strip(function)
        _strip_nodes(function.node)


def _strip(part: Any) -> None:
    part.ClearField("doc_string")
    part.ClearField("metadata_props")


def _strip_graph(graph: onnx.GraphProto) -> None:
    _strip(graph)
    for part in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        _strip(part)
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Any) -> None:
    for node in nodes:
        _strip(node)
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            if attribute.HasField("g"):
                _strip_graph(attribute.g)
            for graph in attribute.graphs:
                _strip_graph(graph)
