"""Values that are written as text: on the command line, in recipes, and in ONNX files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import OptionError

_LARGEST_SIDE = 65_536
_MOST_VALUES = 2**28


@dataclass(frozen=True)
class Text:
    """Marks an option of several numbers in one text.

    Attributes:
        read: makes a value of the option's name and its text.
        separator: what stands between the numbers.
    """

    read: Callable[[str, str], Any]
    separator: str = ","

    def write(self, value: tuple[float, ...]) -> str:
        """The text of a value."""
        return self.separator.join(map(str, value))


def shape(option: str, text: str) -> tuple[int, int, int]:
    """Reads an image shape such as 3x32x32 (channels x height x width).

    Args:
        option: where it was given.
        text: what was given.

    Raises:
        OptionError: not three whole numbers of at least 1.
    """
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(_is_count(part) for part in parts):
        raise OptionError(f"{option} {text[:200]!r} is not CHANNELSxHEIGHTxWIDTH; write it like 3x32x32")
    channels, height, width = map(int, parts)
    if max(channels, height, width) > _LARGEST_SIDE or channels * height * width > _MOST_VALUES:
        raise OptionError(
            f"{option} {text[:200]!r} is too large; sides are 1..{_LARGEST_SIDE:,}, values {_MOST_VALUES:,} at most"
        )
    return channels, height, width


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Reads numbers such as 0.485,0.456,0.406, one per channel.

    Args:
        option: where it was given.
        text: what was given.

    Raises:
        OptionError: something else than numbers with commas between them.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise OptionError(
            f"{option} {text[:200]!r} is not a list of numbers; write it like 0.485,0.456,0.406"
        ) from None


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0
