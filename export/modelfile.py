"""Reading an ONNX file as data, without running it."""

from __future__ import annotations

from pathlib import Path

import onnx

from ..files import check_input
from .errors import ModelFileError

_LARGEST_MODEL = 2**31  # no protobuf message is larger


def require_file(path: str | Path) -> Path:
    """The path of a file that exists.

    Raises:
        ModelFileError: nothing there, or something that is no regular file of the size of a model.
    """
    file = Path(path)
    check_input(file, error=ModelFileError, largest=_LARGEST_MODEL, what="an .onnx file")
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


def shape_in(entry: onnx.ValueInfoProto) -> list[int | str]:
    """The shape of an input or output: sizes, and names of those that are free."""
    return [dim.dim_value or dim.dim_param for dim in entry.type.tensor_type.shape.dim]
