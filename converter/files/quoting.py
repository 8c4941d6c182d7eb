"""Foreign text inside our sentences."""

from __future__ import annotations

LONGEST = 200


def quoted(text: object, longest: int = LONGEST) -> str:
    """Text of a file's as a part of a message: one line, no control characters, not longer than it deserves.

    Args:
        text: anything; what `str` makes of it is quoted.
        longest: characters, >= 1.
    """
    line = " ".join(str(text)[: 4 * longest].split())
    printable = "".join(character if character.isprintable() else "?" for character in line)
    return printable if len(printable) <= longest else printable[: longest - 1] + "…"
