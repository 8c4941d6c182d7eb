"""Ctrl-C, and the signal by which machines are taken away, wait for the end of a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Whether somebody has asked to stop."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def interrupts(*, wait: bool) -> Iterator[Interrupts]:
    """Takes note of signals to stop, instead of stopping in the middle of a step; a second one stops at once.

    Args:
        wait: False leaves all as it is, and so does a thread that is not the main one, which gets no signals.
    """
    found = Interrupts()
    if not wait or threading.current_thread() is not threading.main_thread():
        yield found
        return

    def note(_number: int, _frame: FrameType | None) -> None:
        if found.asked:
            raise KeyboardInterrupt
        found.asked = True

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
