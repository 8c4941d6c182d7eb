"""The parent's end of a measuring process: start it, ask it, and never leave it behind."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import tempfile
import threading
from typing import Any

from .errors import BenchmarkError


class WorkerProcess:
    """A `worker` process for one file, a context manager that ends the process.

    Started by its module name and not by multiprocessing, which would run the caller's script a second time
    when that has no `if __name__ == "__main__"`.

    Args:
        label: the file, as errors call it.
        timeout_s: seconds to wait for any one answer, > 0.
    """

    def __init__(self, label: str, timeout_s: float) -> None:
        self._label = label
        self._timeout_s = timeout_s
        self._lines: queue.Queue[str] = queue.Queue()
        # A file, as a pipe that nobody reads would fill up and block the worker.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  __exit__ closes it
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                encoding="utf-8",
            )
        except BaseException:
            self._complaints.close()
            raise
        # A thread, as pipes cannot be waited for with a timeout on every system.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._complaints):
            with contextlib.suppress(OSError):  # a command the worker did not live to read
                if stream is not None:
                    stream.close()

    def ask(self, do: str, **options: str | int | float) -> dict[str, Any]:
        """Send one command and wait for its answer.

        Args:
            do: the command, see `worker`.
            options: its arguments.

        Raises:
            BenchmarkError: the worker refused, died or gave no answer in time.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has died: the end of its output says so next
            self._process.stdin.write(json.dumps({"do": do, **options}) + "\n")
            self._process.stdin.flush()
        return self.receive()

    def receive(self) -> dict[str, Any]:
        """The next answer; the first one comes without a question, when the process is ready."""
        try:
            line = self._lines.get(timeout=self._timeout_s)
        except queue.Empty:
            raise BenchmarkError(
                f"{self._label}: no answer from its measuring process within {self._timeout_s:g} s. "
                f"Raise timeout_s, or check that the machine has memory left."
            ) from None
        if not line:
            code = self._process.wait()
            raise BenchmarkError(
                f"{self._label}: its measuring process died with exit code {code} ({self._last_words()}). "
                f"Check that the file is whole and that the machine has memory left."
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchmarkError(answer["error"])
        return answer

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _last_words(self) -> str:
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else "it said nothing"
