"""What a compressed checkpoint says before its tensors are read, each word of it checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...files import quoted, reading
from ..errors import CheckpointError
from ..planning.plan import Plan
from .source import Source

READ_VERSIONS = ("1", "2")
_LARGEST_TEXT = 64 * 2**20
_FLOATING = frozenset({"F16", "BF16", "F32", "F64"})


@dataclass(frozen=True)
class Header:
    """What a file says before its tensors are read.

    Attributes:
        source, plan: as saved.
        tied: name -> the name under which its tensor is stored.
        layout: name -> (shape, type as safetensors calls it), of what is stored.
        metadata: the texts that this was read from.
    """

    source: Source
    plan: Plan
    tied: dict[str, str]
    layout: dict[str, tuple[list[int], str]]
    metadata: Mapping[str, str]


def read_header(path: Path, file: Any) -> Header:
    """Reads all but the tensors.

    Args:
        path: for messages.
        file: what `safetensors.safe_open` opened.

    Raises:
        CheckpointError: not ours, another format, or something in it cannot be.
    """
    metadata: dict[str, str] = file.metadata() or {}
    version = metadata.get("dprp_format")
    if version is None:
        raise CheckpointError(
            f"{quoted(path)}: is a plain safetensors file; pass it as --checkpoint with the name of its model"
        )
    if version not in READ_VERSIONS:
        raise CheckpointError(
            f"{quoted(path)}: has format {quoted(version)}, this dprp reads {' and '.join(READ_VERSIONS)}; "
            "upgrade dprp"
        )
    if sum(map(len, metadata.values())) > _LARGEST_TEXT:
        raise CheckpointError(
            f"{quoted(path)}: has more than {_LARGEST_TEXT:,} bytes of metadata; write the file anew"
        )
    try:
        tied = json.loads(metadata["tied"])
        if not isinstance(tied, dict) or not all(isinstance(name, str) for name in tied.values()):
            raise TypeError("tied is not a map of names")
        source, plan = Source.from_json(metadata["source"]), Plan.from_json(metadata["plan"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{quoted(path)}: its metadata does not read ({quoted(error)}); write the file anew"
        ) from error
    with reading(path, error=CheckpointError):
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        layout = {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()}
    return Header(source, plan, tied, layout, metadata)


def check_layout(path: Path, network: nn.Module, header: Header) -> None:
    """Compares names, shapes and types with a network's, which may be without memory.

    Raises:
        CheckpointError: one differs.
    """
    expected = {name: (list(tensor.shape), _kind(tensor.dtype)) for name, tensor in network.state_dict().items()}
    stored = {name: header.layout.get(place) for name, place in header.tied.items()}
    found = {
        name: (entry[0], "floating" if entry[1] in _FLOATING else entry[1])
        for name, entry in (header.layout | stored).items()
        if entry is not None
    }
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        is_there = _told(found.get(name), expected.get(name), "missing")
        wanted = _told(expected.get(name), found.get(name), "no such tensor")
        raise CheckpointError(
            f"{quoted(path)}: {quoted(name)} is {is_there}, the network has {wanted} ({len(wrong)} such in all); "
            "the file is damaged or its model has changed"
        )


def _told(entry: tuple[list[int], str] | None, other: tuple[list[int], str] | None, absent: str) -> str:
    """A shape, with the type where only that differs."""
    if entry is None:
        return absent
    return f"{entry[1]} {entry[0]}" if other is not None and entry[0] == other[0] else str(entry[0])


def _kind(dtype: torch.dtype) -> str:
    """A type as safetensors calls it, all floating ones as one: they are read in the network's."""
    if dtype.is_floating_point:
        return "floating"
    names = {torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32"}
    return names.get(dtype, "I64" if dtype is torch.int64 else str(dtype))
