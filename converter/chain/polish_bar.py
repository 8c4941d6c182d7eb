"""The progress bar of polishing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def polish_bar(steps: int, *, enabled: bool) -> Iterator[Callable[[int, float], None]]:
    """Shows steps, loss and the time that is left, on stderr so that piped output stays clean.

    Args:
        steps: that there will be.
        enabled: whether to show anything.

    Yields:
        What `polish` takes as `on_step`.
    """
    columns = (
        TextColumn("polish"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not enabled) as progress:
        task = progress.add_task("", total=steps, loss="-")
        yield lambda step, loss: progress.update(task, completed=step, loss=f"{loss:.3f}")
