"""The one place that makes ONNX Runtime sessions, so that every figure comes from the same settings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from .errors import ExportError, ModelFileError, first_line
from .modelfile import require_file

Array = npt.NDArray[Any]


def available_cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def open_session(
    path: Path | bytes, *, threads: int | None = None, label: str | None = None, optimised: bool = True
) -> ort.InferenceSession:
    """An ONNX Runtime session on the CPU with a fixed number of threads.

    Args:
        path: an ONNX file, or what is in one.
        threads: threads inside an operator, >= 1; None takes every core this process may use.
        label: what errors call the file; its path if None.
        optimised: whether nodes may be joined into others.

    Raises:
        ModelFileError: no such file, or one that ONNX Runtime cannot load.
        ExportError: threads below 1.
    """
    label = label or ("the model" if isinstance(path, bytes) else str(path))
    if threads is not None and threads < 1:
        raise ExportError(f"threads: {threads} is not at least 1. Give the number of CPU threads, or None.")
    if not isinstance(path, bytes):
        require_file(path)
    options = session_options(threads)
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(
            path if isinstance(path, bytes) else str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        raise ModelFileError(
            f"{label}: ONNX Runtime {ort.__version__} cannot load it ({_reason(error)}). "
            f"Check that the file is whole and that its operators and types run on the CPU."
        ) from error


def session_options(threads: int | None) -> ort.SessionOptions:
    """Settings of every session: so many threads inside an operator, or every core that this process may use."""
    options = ort.SessionOptions()
    # Never ONNX Runtime's own default: it pins threads to cores, which fails noisily inside containers.
    options.intra_op_num_threads = available_cores() if threads is None else threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Errors reach the user once, as ours; severity 3 would print each of them a second time.
    options.log_severity_level = 4
    # Threads may spin within a run, as when deployed, but not after it: an idle session that still spins
    # steals the cores from the one being measured.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def infer(session: ort.InferenceSession, inputs: Sequence[Array], label: str) -> list[Array]:
    """The outputs of one run, or of as many as it takes where a file takes so many images a run and no others.

    Args:
        session: an open session.
        inputs: one array per input of the model, in order.
        label: what errors call the file.

    Raises:
        ModelFileError: the wrong number of inputs, or a run that fails.
    """
    names = [entry.name for entry in session.get_inputs()]
    shapes = ", ".join(str(tuple(array.shape)) for array in inputs)
    if len(names) != len(inputs):
        raise ModelFileError(f"{label}: takes {len(names)} inputs, got {len(inputs)} of shape {shapes}.")
    images = len(inputs[0]) if inputs and inputs[0].ndim else 0
    fixed = fixed_batch(entry.shape for entry in (*session.get_inputs(), *session.get_outputs()))
    try:
        runs = [session.run(None, dict(zip(names, part, strict=True))) for part in in_runs(inputs, fixed)]
        if fixed in (None, images):
            return [np.asarray(output) for output in runs[0]]
        return [np.concatenate(outputs)[:images] for outputs in zip(*runs, strict=True)]
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        raise ModelFileError(
            f"{label}: ONNX Runtime cannot run it on inputs of shape {shapes} ({_reason(error)}). "
            f"Give inputs of the shape it was exported with."
        ) from error


def fixed_batch(shapes: Iterable[Sequence[int | str | None]]) -> int | None:
    """How many images every run of a file takes, by the shapes of its inputs and outputs; None where any will do."""
    sizes = {shape[0] if shape else None for shape in shapes}
    first = sizes.pop()
    return first if not sizes and isinstance(first, int) else None


def in_runs(inputs: Sequence[Array], images: int | None) -> Iterator[list[Array]]:
    """A batch in parts of so many images; the last image stands in for those that the last part lacks."""
    count = len(inputs[0]) if inputs and inputs[0].ndim else 0
    if images is None or count in (0, images):
        yield list(inputs)
        return
    for start in range(0, count, images):
        places = np.arange(start, start + images).clip(max=count - 1)
        yield [array[places] for array in inputs]


def _reason(error: Exception) -> str:
    """The text after ONNX Runtime's "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : "."""
    return first_line(error).removeprefix("[ONNXRuntimeError] :").rpartition(" : ")[2].strip()
