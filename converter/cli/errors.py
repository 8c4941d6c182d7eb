"""Errors become one sentence on stderr and an exit code.

1    what was asked turned out not to be so: files that do not agree
2    a mistake of the user's: bad options, bad files, a budget out of reach, a file system that refuses
130  interrupted from the keyboard
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

USER_ERROR = 2
INTERRUPTED = 130


# Newer typers carry a click of their own, older ones use the installed one: its root error is found from a subclass.
_ClickError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def exit_code(run: Callable[[], object]) -> int:
    """Runs the command line and says how it ended.

    Args:
        run: does the work; what it returns is its exit code if it is a number.

    Returns:
        0, or one of the codes above with a sentence on stderr. Anything unforeseen is raised on.
    """
    try:
        with _notes():
            code = run()
    except _ClickError as error:
        return _refuse(getattr(error, "format_message", error.__str__)())
    except typer.Abort:
        code = INTERRUPTED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _refuse(f"{where}{error.strerror or error}")
    except ValueError as error:
        if not isinstance(error, _ours()):
            raise
        return _refuse(str(error))
    if code == INTERRUPTED:
        print("dprp: interrupted", file=sys.stderr)
    return code if isinstance(code, int) else 0


@contextmanager
def _notes() -> Iterator[None]:
    """Warnings of ours become one line each on stderr; others stay as Python shows them."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            # By name: the class lives beside torch, which `dprp --help` does without.
            if category.__name__ == "ConverterWarning":
                print("dprp: note:", " ".join(str(message).split()), file=sys.stderr)
            else:
                show(message, category, *rest, **more)

        warnings.showwarning = note
        yield


def _ours() -> tuple[type[ValueError], ...]:
    # Imported only now: whoever raised one of these has loaded them, and `dprp --help` needs none of them.
    from ...export.errors import ExportError
    from ...models.errors import ModelsError
    from ..errors import ConverterError

    return (ConverterError, ModelsError, ExportError)


def _refuse(message: str) -> int:
    # One line whatever the message, and no rich: it would wrap paths and take [brackets] for markup.
    print("dprp:", " ".join(message.split()), file=sys.stderr)
    return USER_ERROR
