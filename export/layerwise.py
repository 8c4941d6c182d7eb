"""Where a file first computes something else than its model: every layer's output, in the order in which they run."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import Tensor, nn

from .calls import Flat, Inputs
from .modelfile import load_model, shape_in
from .node_names import layer_outputs
from .quantization import QUANTIZED
from .session import Array, fixed_batch, open_session
from .verification import reference_copy


@dataclass(frozen=True)
class LayerDifference:
    """How far a layer's output in the file is from the model's.

    Attributes:
        layer: the module's name.
        call: which of its calls, from 0.
        relative: |model - file| / |model|, Euclidean norms over the output; infinite where a value is not finite, or
            the file's output has another size.
    """

    layer: str
    call: int
    relative: float

    def __str__(self) -> str:
        again = f", call {self.call + 1}" if self.call else ""
        return f"{self.layer}{again}: off by {self.relative:.1e} of its output"


def layer_differences(
    model: nn.Module, path: str | Path, batch: Inputs, *, scaled: Mapping[str, int] | None = None
) -> list[LayerDifference]:
    """Compares the outputs of layers with weights on both sides.

    Args:
        model: the exported model, of plain layers; it runs in a copy, in evaluation mode, on the CPU.
        path: a file of `to_onnx`, or what was made of one by quantisation: its nodes carry their layer's name.
        batch: what the model takes.
        scaled: layers whose outputs the file may have scaled, and the axis of their channels; each channel counts
            but for a factor. Those that `quantize` scaled are known.

    Returns:
        In the order in which the layers run; those that the file does not name, or that do not run, are left out.

    Raises:
        ModelFileError: no such file, or one that ONNX Runtime cannot run.
        ExportError: the model cannot take the batch.
    """
    file = load_model(path)
    names = layer_outputs(file)
    reference = reference_copy(model)
    flat = Flat(reference, batch)
    fixed = fixed_batch(map(shape_in, (*file.graph.input, *file.graph.output)))
    if fixed is not None:
        flat = flat.of_images(fixed)
    wanted = _watched(reference, flat)
    there = {output for outputs in names.values() for output in outputs}
    known = {entry.name for entry in file.graph.output}
    file.graph.output.extend(onnx.ValueInfoProto(name=name) for name in there - known)
    session = open_session(file.SerializeToString(), label=str(path), optimised=False)
    feeds = dict(zip([entry.name for entry in session.get_inputs()], flat.tensors, strict=True))
    outputs = [entry.name for entry in session.get_outputs()]
    found = dict(zip(outputs, session.run(None, {name: one.numpy() for name, one in feeds.items()}), strict=True))
    free = {**_drawn(file), **(scaled or {})}
    differences = []
    for layer, call, expected in wanted:
        if call < len(names.get(layer, ())):
            actual = np.asarray(found[names[layer][call]])
            if layer in free:
                actual = _unscaled(expected, actual, free[layer])
            differences.append(LayerDifference(layer, call, _relative(expected, actual)))
    return differences


def first_difference(differences: list[LayerDifference], tolerance: float) -> LayerDifference | None:
    """The first that is larger."""
    return next((one for one in differences if not one.relative <= tolerance), None)


def _drawn(file: onnx.ModelProto) -> dict[str, int]:
    """Layers whose outputs were scaled when the file was quantised, and the axis of their channels."""
    about = {entry.key: entry.value for entry in file.metadata_props}
    names = json.loads(about[QUANTIZED]).get("drawn", ()) if QUANTIZED in about else ()
    drawn = [node for node in file.graph.node if node.name in names]
    return {node.name.rpartition("/")[0]: 1 if node.op_type == "Conv" else -1 for node in drawn}


def _watched(model: nn.Module, flat: Flat) -> list[tuple[str, int, Array]]:
    """What each layer gives in each of its calls, in order."""
    seen: list[tuple[str, int, Array]] = []
    calls: defaultdict[str, int] = defaultdict(int)

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                seen.append((name, calls[name], output.detach().numpy().copy()))
                calls[name] += 1

        return hook

    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    handles = [module.register_forward_hook(watch(name)) for name, module in leaves]
    try:
        flat.run(flat.tensors)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _unscaled(expected: Array, actual: Array, axis: int) -> Array:
    """The second, each channel times the factor that brings it nearest to the first."""
    if expected.shape != actual.shape:
        return actual
    others = tuple(one for one in range(expected.ndim) if one != axis % expected.ndim)
    exact, scaled = expected.astype(np.float64), actual.astype(np.float64)
    size = np.square(scaled).sum(others, keepdims=True)
    unscaled: Array = scaled * ((exact * scaled).sum(others, keepdims=True) / np.maximum(size, 1e-300))
    return unscaled


def _relative(expected: Array, actual: Array) -> float:
    if expected.size != actual.size or not (np.isfinite(expected).all() and np.isfinite(actual).all()):
        return float("inf")
    apart = float(np.linalg.norm(expected.astype(np.float64).ravel() - actual.astype(np.float64).ravel()))
    size = float(np.linalg.norm(expected.astype(np.float64).ravel()))
    return apart / size if size else (0.0 if apart == 0.0 else float("inf"))
