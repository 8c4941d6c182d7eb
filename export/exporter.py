"""From a torch model to one verified ONNX file."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from ..files import check_output, written_whole
from .calls import Flat, Inputs, flattened
from .errors import ExportError, ModelFileError, VerificationError, first_line
from .half import halved, holds_half
from .node_names import name_nodes
from .session import open_session
from .slim import strip_notes
from .verification import Verification, compare, reference_copy

# Besides the traced size, 2: one image, which is what most devices run, and an odd number.
_VERIFIED_BATCHES = (1, 2, 5)

_ANY_SIZE = ", and fixed batch sizes, or fix how many images a run takes (batch=1, --batch 1)"

_TOLERANCE, _TOLERANCE_OF_HALF = 1e-4, 1e-2


def to_onnx(
    model: nn.Module,
    example: Inputs,
    path: str | Path,
    *,
    metadata: Mapping[str, str] | None = None,
    opset: int | None = None,
    tolerance: float | None = None,
    half: bool = False,
    batch: int | None = None,
    force: bool = False,
) -> Verification:
    """Export a model to one ONNX file, by default of a dynamic batch size, and keep it only if it computes the same.

    The file is compared with torch on the example and on random batches of 1, 2 and 5, or of the size that it
    takes, before it takes its name: a failure leaves nothing behind and an existing file as it was. The model is
    not changed.

    Args:
        model: plain layers only; its forward returns a tensor, or several in a tuple, dictionary or dataclass.
        example: (N, ...) input, N >= 1, a tuple of them, a dictionary of named ones, or whatever has `args` and
            `kwargs`; only shape, type, mean and spread of tensors matter. Other arguments become part of the file.
            Each image of a list is an input of its own, and the file takes as many, of the sizes they have.
        path: file to write; its folder must exist.
        metadata: strings to store in the file, read back by `read_metadata`.
        opset: ONNX operator set; None takes torch's default.
        tolerance: largest accepted difference relative to the output's scale, >= 0; None takes 1e-4, and 1e-2 of
            float16.
        half: whether weights and arithmetic are float16, for GPUs and NPUs; inputs and outputs stay float32.
        batch: images in every run of the file, for compilers that want to know, and for models whose forward works
            at one batch size only; None for any number.
        force: whether to replace an existing file.

    Returns:
        How closely the file agrees with the model.

    Raises:
        ModelFileError: the file exists and `force` is not set, or it cannot be written.
        VerificationError: outputs differ by more than the tolerance.
        ExportError: a layer still has `fuse()`, or torch cannot export the model.
    """
    target = Path(path)
    check_output(target, force=force, error=ModelFileError)
    _check_model(model)
    reference = reference_copy(model)
    flat = Flat(reference, example)
    _check_example(flat.tensors)
    if batch is not None:
        flat = flat.of_images(batch)
    fixed = flat.lists or batch is not None
    proto = _trace(reference, flat, opset, fixed=fixed)
    name_nodes(proto)
    strip_notes(proto)
    if half:
        proto = halved(proto)
    if tolerance is None:
        tolerance = _TOLERANCE_OF_HALF if holds_half(proto) else _TOLERANCE
    _add_metadata(proto, metadata or {})
    _check_graph(proto, type(model).__name__)

    with written_whole(target, force=force, error=ModelFileError) as scratch:
        scratch.write_bytes(proto.SerializeToString())
        session = open_session(scratch, label=str(target))
        batches = map(flat.batch, _batches(flat.tensors, fixed=fixed))
        result = compare(reference, session, batches, tolerance=tolerance, label=str(target))
        if not result.ok:
            raise VerificationError(
                f"{target}: not written, {result}. Make forward deterministic in evaluation mode, "
                f"or raise the tolerance if this is accurate enough."
            )
    return result


def _check_model(model: nn.Module) -> None:
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ExportError(f"{type(model).__name__}: is a training wrapper. Export model.module instead.")
    for name, module in model.named_modules():
        if callable(getattr(module, "fuse", None)):
            layer = f"layer {name}" if name else type(model).__name__
            raise ExportError(f"{layer} is still factorised: call fuse(model) first.")


def _check_example(inputs: tuple[Tensor, ...]) -> None:
    for tensor in inputs:
        if tensor.ndim == 0 or len(tensor) == 0:
            shape = tuple(tensor.shape)
            raise ExportError(f"example: shape {shape} has no image in dimension 0. Give at least a batch of one.")


def _trace(model: nn.Module, flat: Flat, opset: int | None, *, fixed: bool) -> onnx.ModelProto:
    # Two images: torch.export would take a batch of 1 for a constant.
    given = flat.tensors if fixed else tuple(torch.cat([tensor[:1], tensor[-1:]]) for tensor in flat.tensors)
    # A mistake in the example shows here in one sentence, not in the exporter's hundred.
    outputs = list(flat.run(given))
    shapes = None if fixed else (tuple({0: torch.export.Dim("batch")} for _ in given),)  # of one argument, *tensors
    name = type(model).__name__
    try:
        with _quiet(), torch.no_grad(), flattened(model, flat):
            # Traced here and not by torch.onnx.export, which on failure goes on to try other tracers.
            program = torch.export.export(model, given, dynamic_shapes=shapes, strict=False)
            exported = torch.onnx.export(
                program,
                (),
                dynamo=True,
                external_data=False,
                optimize=True,
                verbose=False,
                input_names=flat.input_names,
                output_names=outputs,
                opset_version=opset,
                dynamic_shapes=shapes,  # traced above; here for the name of the dimension
            )
    except Exception as error:  # tracing runs the user's forward: anything may come out
        raise ExportError(
            f"{name}: torch cannot export it ({first_line(error)}). "
            f"Keep Python conditions on values out of forward{'' if fixed else _ANY_SIZE}."
        ) from error
    if exported is None:
        raise ExportError(f"{name}: torch {torch.__version__} gave no ONNX program. Use torch 2.8 or later.")
    proto: onnx.ModelProto = exported.model_proto
    written = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    # torch only logs when it cannot convert to the opset asked for, and returns another one.
    if opset is not None and written != opset:
        raise ExportError(f"opset: {opset} is not possible for {name}, torch gives {written}. Leave opset out.")
    return proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own chatter from the user: what matters comes out of it as an exception."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch.fx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        # Where tracing fails torch also prints the graph so far. What the user's own forward prints is lost
        # here, but it has run once before, aloud.
        void = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(void), contextlib.redirect_stderr(void):
            # torch's exporter calls torch functions that torch deprecates; the user can do nothing about it.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            # Said when two inputs share the batch dimension, as they should.
            warnings.filterwarnings("ignore", message=".*axis name: batch will not be used", category=UserWarning)
            # What a forward keeps on its module it keeps anew each time, or the comparison finds out.
            warnings.filterwarnings("ignore", message=".*assigned during export", category=UserWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _add_metadata(proto: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ExportError(f"metadata: {key!r} is {type(value).__name__}, not text. Convert it to a string first.")
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value


def _check_graph(proto: onnx.ModelProto, name: str) -> None:
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{name}: torch wrote an invalid ONNX graph ({first_line(error)}).") from error


def _batches(inputs: tuple[Tensor, ...], *, fixed: bool) -> Iterator[tuple[Tensor, ...]]:
    yield inputs
    generator = torch.Generator().manual_seed(0)  # our own: the user's random state stays as it is
    for size in _VERIFIED_BATCHES:
        yield tuple(_random_like(tensor, len(tensor) if fixed else size, generator) for tensor in inputs)


def _random_like(tensor: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Random images of the example's mean and spread: noise near 0 tests no net for pixels of 0..255."""
    if not tensor.is_floating_point():
        return tensor[torch.randint(len(tensor), (size,), generator=generator)]
    noise = torch.randn((size, *tensor.shape[1:]), generator=generator)
    mean, spread = tensor.float().mean(), tensor.float().std(correction=0)
    return (mean + noise * (spread if spread > 0 else 1.0)).to(tensor.dtype)
