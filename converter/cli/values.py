"""Values that are written as text on the command line."""

from __future__ import annotations

from .errors import CliError

_LARGEST_SIDE = 65_536
_MOST_VALUES = 2**28


def shape_from(text: str | None) -> tuple[int, int, int] | None:
    """Reads an image shape such as 3x32x32 (channels x height x width).

    Raises:
        CliError: not three whole numbers of at least 1.
    """
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(_is_count(part) for part in parts):
        raise CliError(f"--input {text[:200]!r} is not CHANNELSxHEIGHTxWIDTH; write it like 3x32x32")
    channels, height, width = map(int, parts)
    if max(channels, height, width) > _LARGEST_SIDE or channels * height * width > _MOST_VALUES:
        raise CliError(
            f"--input {text[:200]!r} is too large; sides are 1..{_LARGEST_SIDE:,}, values {_MOST_VALUES:,} at most"
        )
    return channels, height, width


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0


def numbers_from(option: str, text: str | None) -> tuple[float, ...] | None:
    """Reads numbers such as 0.485,0.456,0.406, one per channel.

    Raises:
        CliError: something else than numbers with commas between them.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise CliError(f"{option} {text[:200]!r} is not a list of numbers; write it like 0.485,0.456,0.406") from None
