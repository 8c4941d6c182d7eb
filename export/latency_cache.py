"""Measured times on disk, so that a layer is timed once per machine and not once per plan."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

from ..files import written_whole
from .benchmarking import cpu_name
from .errors import ModelFileError

# One more whenever times are taken in another way, so that old and new ones never mix.
SCHEME = 1


def default_folder() -> Path | None:
    """`dprp/latency` in the user's cache folder; None where there is no such folder.

    $XDG_CACHE_HOME if set, else %LOCALAPPDATA% on Windows, ~/Library/Caches on macOS, ~/.cache elsewhere.
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    if not Path(named).is_absolute() and sys.platform == "win32":
        named = os.environ.get("LOCALAPPDATA", "")
    if Path(named).is_absolute():
        return Path(named, "dprp", "latency")
    with contextlib.suppress(RuntimeError):  # no home folder
        return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "dprp" / "latency"
    return None


class LatencyCache:
    """One JSON file per CPU model, ONNX Runtime version, number of threads and way of measuring.

    Nothing here ever fails: a file that does not read counts as empty and is written anew, and where nothing can
    be written nothing is kept. Two processes may share the folder: files are replaced whole, with what the other
    has written since (should both write within the same millisecond, one's news is lost and measured again).

    Args:
        folder: made when first written to; None keeps nothing.
        threads: threads inside an operator.
    """

    def __init__(self, folder: Path | None, threads: int) -> None:
        self._key: dict[str, str | int] = {
            "cpu": cpu_name(),
            "onnxruntime": ort.__version__,
            "threads": threads,
            "scheme": SCHEME,
        }
        # Readable, and told apart by the digest where CPU names differ only in characters that files cannot have.
        digest = hashlib.sha256(json.dumps(self._key).encode()).hexdigest()[:8]
        cpu = re.sub(r"[^a-z0-9]+", "-", str(self._key["cpu"]).lower()).strip("-")[:60]
        name = f"{cpu}-ort{ort.__version__}-threads{threads}-{digest}.json"
        self._file = None if folder is None else folder / name

    def read(self) -> dict[str, float]:
        """Chain name to milliseconds."""
        if self._file is None:
            return {}
        try:
            content = json.loads(self._file.read_text(encoding="utf-8"))
            if {name: content[name] for name in self._key} != self._key:
                return {}
            times_ms = {str(name): float(value) for name, value in content["times_ms"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return {}
        return {name: value for name, value in times_ms.items() if math.isfinite(value) and value >= 0}

    def add(self, times_ms: Mapping[str, float]) -> None:
        """Keep these times beside those on disk."""
        if self._file is None or not times_ms:
            return
        with contextlib.suppress(OSError, ModelFileError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            merged = dict(sorted((self.read() | dict(times_ms)).items()))
            with written_whole(self._file, force=True, error=ModelFileError) as temporary:
                temporary.write_text(json.dumps(self._key | {"times_ms": merged}, indent=0), encoding="utf-8")
