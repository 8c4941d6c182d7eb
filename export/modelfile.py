"""Reading an ONNX file as data, without running it."""

from __future__ import annotations

from pathlib import Path

import onnx

from .errors import ModelFileError


def require_file(path: str | Path) -> Path:
    """The path of a file that exists.

    Raises:
        ModelFileError: nothing there, or a folder.
    """
    file = Path(path)
    if not file.exists():
        raise ModelFileError(f"{file}: no such file. Check the path or export the model first.")
    if not file.is_file():
        raise ModelFileError(f"{file}: not a file. Give the path of one .onnx file.")
    return file


def load_model(path: str | Path) -> onnx.ModelProto:
    """The graph and weights of an ONNX file.

    Raises:
        ModelFileError: no such file, or not an ONNX model.
    """
    file = require_file(path)
    try:
        model = onnx.load(str(file), load_external_data=False)
    except Exception:  # protobuf's DecodeError, from a package that is not ours to import
        model = onnx.ModelProto()
    # An empty file is a valid protobuf message with nothing in it.
    if not model.HasField("graph"):
        raise ModelFileError(f"{file}: not an ONNX model or cut short. Export it again.")
    return model


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata that `to_onnx` wrote into a file.

    Args:
        path: an ONNX file.

    Returns:
        Key to value; empty when the file carries none.

    Raises:
        ModelFileError: no such file, or not an ONNX model.
    """
    return {entry.key: entry.value for entry in load_model(path).metadata_props}
