"""Kernel times from ONNX Runtime's own profiler: what each node of a graph takes, run by run."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import NamedTuple

import onnxruntime as ort

from .errors import BenchmarkError, ExportError, first_line
from .latency import random_inputs

_KERNEL = "_kernel_time"


class Kernel(NamedTuple):
    """One node in one run; the optimiser may have renamed it to its own name and a suffix, or made it up."""

    name: str
    op_type: str
    duration_us: float


class Run(NamedTuple):
    """One run: its nodes in the order in which they ran, and all of it."""

    kernels: tuple[Kernel, ...]
    duration_us: float


class ProfiledSession:
    """A session whose kernels are timed; ended by `finish`.

    Args:
        model: a serialised model, or the path of a file.
        options: of a session that `open_session` made; changed to profile.
        folder: where the profile is written; it is deleted by `finish`.
        label: what errors call the model.

    Raises:
        BenchmarkError: ONNX Runtime cannot load the model.
        ExportError: inputs that cannot be made up.
    """

    def __init__(self, model: bytes | Path, options: ort.SessionOptions, folder: Path, label: str) -> None:
        options.enable_profiling = True
        # ONNX Runtime adds the time to the prefix, which two sessions may share.
        options.profile_file_prefix = str(folder / uuid.uuid4().hex)
        source = str(model) if isinstance(model, Path) else model
        try:
            self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
            self._inputs = random_inputs(self._session, 1, label)
        except ExportError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
            raise BenchmarkError(
                f"{label}: cannot be timed, as ONNX Runtime {ort.__version__} refuses it ({first_line(error)})."
            ) from error

    def run(self) -> None:
        """One run on the same random input of one sample."""
        self._session.run(None, self._inputs)

    def finish(self) -> list[Run]:
        """What each run took; the session cannot be used any more."""
        file = Path(self._session.end_profiling())
        events = json.loads(file.read_text(encoding="utf-8"))
        file.unlink(missing_ok=True)
        runs: list[Run] = []
        kernels: list[tuple[int, Kernel]] = []
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
                name = event["name"].removesuffix(_KERNEL)
                kernels.append((event["ts"], Kernel(name, event["args"].get("op_name", ""), event["dur"])))
            elif event["name"] == "model_run":
                runs.append(Run(tuple(kernel for _, kernel in sorted(kernels)), event["dur"]))
                kernels = []
        return runs
