"""Files whose convolutions and products are of 8 bits: ONNX Runtime's static quantisation.

The ranges of activations are measured on real images. Each convolution and product stands between a
DequantizeLinear and a QuantizeLinear (QDQ), which the runtime joins into one operation of integers. Before that, the
ranges between two factors are drawn together.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from ..files import check_output, written_whole
from .cpu_targets import Recipe, Target, recipe_for
from .errors import DataError, ExportError, ModelFileError, first_line
from .modelfile import load_model, read_metadata, shape_in
from .ranges_between import draw_together
from .session import Array, fixed_batch, in_runs, session_options

QUANTIZED = "dprp.quantized"
"""Metadata: JSON of how a file was quantised."""

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that a layer with a weight becomes."""


class Ranges(str, Enum):
    """How the range of an activation is found from what was seen of it."""

    MINMAX = "minmax"
    ENTROPY = "entropy"
    PERCENTILE = "percentile"

    def __str__(self) -> str:
        return self.value


_METHODS = {
    Ranges.MINMAX: CalibrationMethod.MinMax,
    Ranges.ENTROPY: CalibrationMethod.Entropy,
    Ranges.PERCENTILE: CalibrationMethod.Percentile,
}


@dataclass(frozen=True)
class Quantization:
    """What `quantize` did.

    Attributes:
        recipe: types of 8 bits.
        ranges: how activations' ranges were found.
        images: that they were found on.
        products: convolutions and products in the file.
        floats: names of those that stay in float32, as asked for.
        islands: names of those that the runtime computes in float32 all the same, between integers.
        drawn: names of those whose outputs were scaled, as nothing stands before the next: see `ranges_between`.
    """

    recipe: Recipe
    ranges: Ranges
    images: int
    products: int
    floats: tuple[str, ...]
    islands: tuple[str, ...]
    drawn: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.products - len(self.floats)} of {self.products} layers in 8 bits: {self.recipe}"
        text += f"; ranges by {self.ranges} of {self.images} images"
        if self.islands:
            text += f"; the runtime computes {', '.join(self.islands)} in float32 all the same"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def is_quantized(path: str | Path) -> bool:
    """Whether `quantize` made a file.

    Raises:
        ModelFileError: no such file, or not ONNX.
    """
    return QUANTIZED in read_metadata(path)


def quantize(
    source: str | Path,
    path: str | Path,
    images: Iterable[Tensor],
    *,
    target: Target = Target.AUTO,
    ranges: Ranges = Ranges.MINMAX,
    floats: Sequence[str] = (),
    force: bool = False,
) -> Quantization:
    """Writes a file of 8 bits beside one of float32.

    Args:
        source: a file of `to_onnx`, of one input.
        path: file to write; its folder must exist.
        images: batches (N, ...) as the network takes them; a few hundred in all. Labels are not needed.
        target: the CPU that it shall run on.
        ranges: how to find the ranges of activations.
        floats: names of nodes that stay in float32.
        force: whether to replace an existing file.

    Returns:
        What was done; the file's metadata says it, too.

    Raises:
        ModelFileError: no such file, one that is quantised already, or a name that cannot be written to.
        DataError: no images, or none that the file takes.
        ExportError: no such node, or ONNX Runtime cannot quantise the file.
    """
    destination = Path(path)
    check_output(destination, force=force, error=ModelFileError)
    model = load_model(source)
    names = [node.name for node in model.graph.node if node.op_type in PRODUCTS]
    if any(node.op_type in ("QuantizeLinear", "QLinearConv") for node in model.graph.node):
        raise ModelFileError(f"{source}: is quantised already. Give the float32 file that it was made from.")
    unknown = sorted({*floats} - {*names})
    if unknown:
        raise ExportError(f"{source}: has no layer {', '.join(unknown)}. Its layers are {', '.join(names)}.")
    recipe, reader = recipe_for(target), _Reader(model, images, str(source))
    drawn = draw_together(model, reader.batches, recipe.drawn, str(source))
    with tempfile.TemporaryDirectory(prefix="dprp-") as folder:
        given, ready, made = (Path(folder) / f"{step}.onnx" for step in ("given", "ready", "made"))
        onnx.save(model, str(given))
        try:
            with _quiet():
                quant_pre_process(str(given), str(ready), skip_optimization=True, skip_symbolic_shape=True)
                quantize_static(
                    str(ready),
                    str(made),
                    reader,
                    quant_format=QuantFormat.QDQ,
                    per_channel=True,
                    reduce_range=recipe.reduce_range,
                    activation_type=QuantType.QUInt8 if recipe.unsigned else QuantType.QInt8,
                    weight_type=QuantType.QInt8,
                    nodes_to_exclude=list(floats),
                    calibrate_method=_METHODS[ranges],
                    extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
                )
            islands = _islands(made, recipe, floats)
        except DataError:
            raise
        except Exception as error:  # ONNX Runtime's tools raise whatever their parts raise
            raise ExportError(
                f"{source}: ONNX Runtime {ort.__version__} cannot quantise it ({first_line(error)}). "
                f"Keep the layer in float32, or use the float32 file."
            ) from error
        quantised = onnx.load(str(made))
        found = Quantization(recipe, ranges, reader.images, len(names), tuple(floats), islands, drawn)
    _describe(quantised, model, found)
    with written_whole(destination, force=force, error=ModelFileError) as scratch:
        scratch.write_bytes(quantised.SerializeToString())
    return found


def batches_for(model: onnx.ModelProto, images: Iterable[Tensor]) -> list[Array]:
    """Batches of images as arrays, in parts of as many as the file takes a run."""
    ends = (*model.graph.input[:1], *model.graph.output)
    fixed = fixed_batch(map(shape_in, ends))
    return [part for batch in images for (part,) in in_runs([batch.detach().cpu().numpy()], fixed)]


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Images one batch at a time, as ONNX Runtime asks for them."""

    def __init__(self, model: onnx.ModelProto, images: Iterable[Tensor], label: str) -> None:
        weights = {tensor.name for tensor in model.graph.initializer}
        inputs = [entry for entry in model.graph.input if entry.name not in weights]
        if len(inputs) != 1:
            raise ExportError(f"{label}: has {len(inputs)} inputs, and is quantised on images for one.")
        self._name = inputs[0].name
        given = [batch for batch in images if len(batch)]
        self.batches = batches_for(model, given)
        self._next = 0
        self.images = sum(map(len, given))
        if not self.images:
            raise DataError(f"{label}: no images to find ranges on. Give at least one batch with images in it.")

    def get_next(self) -> dict[str, Array] | None:
        if self._next == len(self.batches):
            return None
        self._next += 1
        return {self._name: self.batches[self._next - 1]}

    def rewind(self) -> None:
        """For whoever goes through them again."""
        self._next = 0


def _islands(path: Path, recipe: Recipe, floats: Sequence[str]) -> tuple[str, ...]:
    """Convolutions and products that the runtime has left in float32, though nobody asked for it."""
    optimised = path.with_suffix(".optimised.onnx")
    options = session_options(threads=1)
    options.optimized_model_filepath = str(optimised)
    if not recipe.unsigned:  # as on ARM, where int8 activations are multiplied as they are
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    # Layouts and fused activations of one machine say nothing of integers.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(str(optimised)).graph
    names = (node.name for node in graph.node if node.op_type in (*PRODUCTS, "FusedConv", "FusedMatMul"))
    return tuple(name for name in names if name not in floats)


def _describe(quantised: onnx.ModelProto, source: onnx.ModelProto, found: Quantization) -> None:
    del quantised.metadata_props[:]
    quantised.metadata_props.extend(source.metadata_props)
    entry = quantised.metadata_props.add()
    entry.key, entry.value = QUANTIZED, json.dumps(found.to_dict())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime's tools log advice that does not hold for files that are prepared as ours are."""
    root = logging.getLogger()
    level = root.level
    try:
        root.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
