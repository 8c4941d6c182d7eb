"""The progress bar of a fine-tuning run."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .record import Step


class FinetuneBar:
    """Shows epoch, loss, the metric and MACs now, on stderr so that piped output stays clean."""

    def __init__(self, epochs: int, metric: str, *, enabled: bool) -> None:
        self._epochs = epochs
        self._score = "-"
        self._progress = Progress(
            TextColumn("fine-tune epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(
                "loss {task.fields[loss]}  {task.fields[metric]} {task.fields[score]}  MACs {task.fields[macs]}"
            ),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not enabled,
        )
        self._task = self._progress.add_task(
            "", total=None, epoch=f"1/{epochs}", loss="-", metric=metric, score="-", macs="-"
        )

    def __enter__(self) -> FinetuneBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, step: Step) -> None:
        """Moves to this step."""
        if step.score is not None:
            self._score = f"{step.score:.2f}"
        self._progress.update(
            self._task,
            completed=step.step,
            total=step.steps,
            epoch=f"{step.epoch}/{self._epochs}",
            loss=f"{step.loss:.3f}",
            score=self._score,
            macs=f"{100 * step.macs:.1f} %",
        )
