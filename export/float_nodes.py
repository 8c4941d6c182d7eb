"""Which layers stay in float32, so that a file of 8 bits loses no more than it may.

Layers are ranked by the error of their own, as if all before them were exact: that of their weight, and that of what
they give, each rounded as the file rounds it. The fewest of the worst that suffice are found by bisection, as if
each more in float32 could only help.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from torch import Tensor

from .cpu_targets import Target, recipe_for
from .errors import ExportError
from .modelfile import load_model, read_metadata
from .quantization import PRODUCTS, QUANTIZED, Quantization, Ranges, batches_for, quantize
from .ranges_between import draw_together
from .session import Array, open_session

Judge = Callable[[Path], float]
"""A file's score in percent: the higher, the better."""

_IMAGES = 16


@dataclass(frozen=True)
class Search:
    """How a file came to its floats.

    Attributes:
        made: the file.
        before, after: scores of the float32 file and of this one, in percent.
        tried: files that were made and judged.
        seconds: that it took.
    """

    made: Quantization
    before: float
    after: float
    tried: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: those of the file, and what it took."""
        taken = {"before": self.before, "after": self.after, "tried": self.tried, "seconds": self.seconds}
        return self.made.to_dict() | taken

    def __str__(self) -> str:
        floats = len(self.made.floats) or "no"
        taken = f"{self.tried} files tried in {self.seconds:.0f} s"
        lost = f"{self.before:.2f} -> {self.after:.2f} % on the images that judge"
        return f"{self.made}; {floats} layers in float32: {lost}; {taken}"


def quantize_within(
    source: str | Path,
    path: str | Path,
    images: Sequence[Tensor],
    *,
    judge: Judge,
    max_drop: float,
    target: Target = Target.AUTO,
    ranges: Ranges = Ranges.MINMAX,
    force: bool = False,
) -> Search:
    """`quantize`, with as many layers in float32 as a largest loss asks for.

    Args:
        source, path, images, target, ranges, force: as for `quantize`.
        judge: scores a file on images that are none of these.
        max_drop: points of the score that may be lost, >= 0.

    Raises:
        ExportError: as `quantize`; or no file within the loss has a layer in 8 bits.
    """
    if not max_drop >= 0:
        raise ExportError(f"max_drop: {max_drop:g} is below 0. Give the points that may be lost, such as 0.5.")
    began, file = time.perf_counter(), Path(source)
    before = judge(file)
    scores: dict[int, float] = {}
    ranked: list[str] = []

    def loses_too_much(floats: int) -> bool:
        quantize(file, trial, images, target=target, ranges=ranges, floats=ranked[:floats], force=True)
        scores[floats] = judge(trial)
        return before - scores[floats] > max_drop

    with tempfile.TemporaryDirectory(prefix="dprp-") as folder:
        trial = Path(folder) / "trial.onnx"
        fewest = 0
        if loses_too_much(0):
            ranked = nodes_by_error(file, trial, images)
            least, fewest = 0, len(ranked)
            while fewest - least > 1:
                middle = (least + fewest) // 2
                if loses_too_much(middle):
                    least = middle
                else:
                    fewest = middle
            if fewest == len(ranked):
                raise ExportError(
                    f"{source}: loses more than {max_drop:g} points with any layer in 8 bits "
                    f"({before:.2f} -> {scores[0]:.2f} % with all). Allow more, or use the float32 file."
                )
    made = quantize(file, path, images, target=target, ranges=ranges, floats=ranked[:fewest], force=force)
    return Search(made, before, scores[fewest], len(scores), time.perf_counter() - began)


def nodes_by_error(source: str | Path, quantised: str | Path, images: Sequence[Tensor]) -> list[str]:
    """Names of a file's layers, the one with the largest error of its own first.

    Args:
        source: the float32 file.
        quantised: what `quantize` made of it.
        images: batches that it was quantised on.
    """
    model, small = load_model(source), load_model(quantised)
    target = json.loads(read_metadata(quantised)[QUANTIZED])["recipe"]["target"]
    batches = batches_for(model, images)
    draw_together(model, batches, recipe_for(Target(target)).drawn, str(source))
    nodes = [node for node in model.graph.node if node.op_type in PRODUCTS]
    weights = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    steps = _steps(small)
    wanted = {node.output[0] for node in nodes}
    known = {entry.name for entry in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(wanted - known))
    session = open_session(model.SerializeToString(), label=str(source))
    outputs = [entry.name for entry in session.get_outputs()]
    given = session.get_inputs()[0].name
    runs = [session.run(None, {given: part}) for part in batches_for(load_model(source), [images[0][:_IMAGES]])]
    seen = {name: np.concatenate(found) for name, *found in zip(outputs, *runs, strict=True)}

    def own_error(node: onnx.NodeProto) -> float:
        parts = [_lost(seen[node.output[0]], steps.get(node.output[0]))]
        parts += [_lost(weights[name], steps.get(name)) for name in node.input[1:2] if name in weights]
        return sum(parts)

    return [node.name for node in sorted(nodes, key=own_error, reverse=True)]


def _steps(model: onnx.ModelProto) -> dict[str, Array]:
    """Width of a step of 8 bits, by the float tensor that is rounded; one for all, or one for each channel."""
    values = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    found: dict[str, Array] = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[1] in values:
            found[node.input[0].removesuffix("_QuantizeLinear_Input")] = values[node.input[1]]
        elif node.op_type == "DequantizeLinear" and node.input[0].endswith("_quantized") and node.input[1] in values:
            found[node.input[0].removesuffix("_quantized")] = values[node.input[1]]
    return found


def _lost(values: Array, step: Array | None) -> float:
    """Part of a tensor's energy that rounding to steps takes: a twelfth of a step, squared, for each value."""
    energy = float(np.square(values, dtype=np.float64).mean())
    if step is None or energy == 0.0:
        return 0.0
    return float(np.square(step, dtype=np.float64).mean()) / 12 / energy
