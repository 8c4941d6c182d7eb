"""What `dprp.export` raises.

ExportError (a ValueError)
├── ModelFileError      a file that is missing, in the way, not ONNX, or that ONNX Runtime cannot run
├── VerificationError   the file does not compute what the model computes
├── DataError           batches or labels that cannot be scored
└── BenchmarkError      a measuring process that failed, died or hung
"""

from __future__ import annotations


class ExportError(ValueError):
    """Anything this package refuses or finds wrong; the text is one sentence for the user."""


class ModelFileError(ExportError):
    """A model file that is missing, in the way, not ONNX, or that ONNX Runtime cannot run."""


class VerificationError(ExportError):
    """A file whose outputs differ from the model's."""


class DataError(ExportError):
    """Batches or labels that cannot be compared or scored."""


class BenchmarkError(ExportError):
    """A measuring process that failed, died or gave no answer in time."""


def first_line(error: BaseException) -> str:
    """First line of another library's error with any text, as a part of one of our sentences."""
    for line in str(error).splitlines():
        if line.strip():
            return line.strip().rstrip(".")
    return type(error).__name__
