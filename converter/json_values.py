"""Values of a JSON document, looked at one by one: whoever wrote the file may have been mistaken, or meant harm."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..files import quoted

LARGEST = 2**62
_LONGEST_TEXT = 1_000


def whole(value: object, name: str, least: int = 0, most: int = LARGEST) -> int:
    """A whole number in a range.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name} is {_shown(value)}; a whole number from {least:,} to {most:,} belongs there")
    return value


def number(value: object, name: str, *, above: float = -math.inf, least: float = -math.inf) -> float:
    """A finite number.

    Raises:
        ValueError: it is something else, or out of range.
    """
    known = isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and value < LARGEST)
    if not known or not above < value < math.inf or value < least:  # type: ignore[operator]
        bound = f" above {above:g}" if above > -math.inf else f" of at least {least:g}" if least > -math.inf else ""
        raise ValueError(f"{name} is {_shown(value)}; a finite number{bound} belongs there")
    return float(value)  # type: ignore[arg-type]


def printable(value: object, name: str) -> str:
    """Printable text of a sane length.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, str) or not is_printable(value):
        raise ValueError(
            f"{name} is {_shown(value)}; at most {_LONGEST_TEXT:,} printable characters on one line belong there"
        )
    return value


def is_printable(text: str) -> bool:
    """Whether a text is printable and of a sane length."""
    return len(text) <= _LONGEST_TEXT and text.isprintable()


def sequence(value: object, name: str, most: int) -> Sequence[object]:
    """A list that is not absurdly long.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, (list, tuple)) or len(value) > most:
        raise ValueError(f"{name} is {_shown(value)}; a list of at most {most:,} values belongs there")
    return value


def _shown(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value):,}"
    if isinstance(value, int) and abs(value) > LARGEST:  # its digits may be too many to print
        return "a number beyond all bounds"
    return quoted(repr(value), 80)
