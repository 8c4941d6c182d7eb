"""Names of a network's outputs."""

from __future__ import annotations

from pathlib import Path

from ...files import check_input, reading
from ...models import ImageData
from ..errors import OptionError
from ..json_values import is_printable, printable

_LARGEST = 2**26


def read_labels(path: Path, outputs: int) -> tuple[str, ...]:
    """Names of a text file, one a line.

    Args:
        path: a file in UTF-8.
        outputs: of the network.

    Raises:
        OptionError: it cannot be read, or has another number of lines, or one that cannot be printed.
    """
    check_input(path, error=OptionError, largest=_LARGEST, what="a text file with the name of an output a line")
    with reading(path, error=OptionError, remedy="write the name of an output a line, in UTF-8"):
        lines = path.read_text(encoding="utf-8").rstrip().splitlines()
        names = tuple(printable(line.strip(), f"line {number}") for number, line in enumerate(lines, 1))
    if len(names) != outputs:
        raise OptionError(f"{path}: has {len(names):,} lines, the network {outputs:,} outputs; write a name for each")
    return names


def labels_of(data: ImageData, outputs: int) -> tuple[str, ...]:
    """Names of a data set's classes, where they are the network's outputs one by one, or none.

    Args:
        data: with or without names.
        outputs: of the network.
    """
    names = data.class_names
    return names if len(names) == outputs and all(map(is_printable, names)) else ()
