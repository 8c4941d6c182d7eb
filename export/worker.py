"""The process that times one file: commands come as JSON lines on stdin, answers go as JSON lines to stdout.

    {"do": "load", "path": ..., "threads": 1, "batch": 1}   -> {"load_ms": ...}
    {"do": "warm", "duration_ms": 200}                      -> {"run_ms": ...}
    {"do": "round", "runs": 50}                             -> {"times_ns": [...]}
    {"do": "peak"}                                          -> {"peak_bytes": ...}

Any command may be answered by {"error": "one sentence"}. The end of stdin ends the process, so it cannot
outlive the one that started it. It must not load torch: the memory reported would be torch's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import onnxruntime as ort

from .errors import ExportError
from .latency import peak_memory_bytes, random_inputs, time_runs, warm_up
from .session import Array, open_session


class _Bench:
    """The session of this process."""

    def __init__(self, path: str, threads: int, batch: int) -> None:
        start_ns = time.perf_counter_ns()
        self.session: ort.InferenceSession = open_session(Path(path), threads=threads)
        self.load_ms = (time.perf_counter_ns() - start_ns) / 1e6
        self.inputs: dict[str, Array] = random_inputs(self.session, batch, path)
        self.path = path

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        if command["do"] == "warm":
            return {"run_ms": warm_up(self.session, self.inputs, command["duration_ms"], self.path)}
        if command["do"] == "round":
            return {"times_ns": time_runs(self.session, self.inputs, command["runs"])}
        return {"peak_bytes": peak_memory_bytes()}


def main() -> None:
    """Answer commands until stdin ends."""
    # Whatever libraries print goes to stderr, so that stdout carries answers only.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    bench: _Bench | None = None
    answers.write(json.dumps({"ready": True}) + "\n")
    answers.flush()
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if bench is None:
                bench = _Bench(command["path"], command["threads"], command["batch"])
                answer: dict[str, Any] = {"load_ms": bench.load_ms}
            else:
                answer = bench.answer(command)
        except ExportError as error:
            answer = {"error": str(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
