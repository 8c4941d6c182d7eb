"""What goes where: answers to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, Protocol


class Answer(Protocol):
    """What a verb returns: prints as text (or as rich renders it), and is JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""


@contextmanager
def working() -> Iterator[None]:
    """While a verb runs nothing else may write to stdout, not even a print in a user's own model."""
    with redirect_stdout(sys.stderr):
        yield


def is_first() -> bool:
    """Whether this is the only process, or the first of several that torchrun or accelerate started."""
    return os.environ.get("RANK", "0") == "0"


def note(message: str) -> None:
    """Tells the user what is going on, on stderr."""
    if is_first():
        print(message, file=sys.stderr, flush=True)


def silent(_message: str) -> None:
    """Instead of `note`: says nothing."""


def show(answer: Answer, *, as_json: bool) -> None:
    """Prints an answer to stdout, for people or as one JSON document; of several processes, only the first does."""
    if not is_first():
        return
    if as_json:
        print(json.dumps(answer.to_dict()), flush=True)
    elif hasattr(answer, "__rich__"):
        from rich.console import Console

        console = Console(highlight=False)
        if not console.is_terminal:  # rich takes a pipe for 80 columns wide and would cut the table
            console.width = 200
        console.print(answer)
    else:
        print(answer, flush=True)
