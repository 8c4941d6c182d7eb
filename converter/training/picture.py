"""A picture of a run: how the ranks fell, and what that did to the metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .record import Step

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_NAMES = 12


def trajectories(steps: Sequence[Step], start: Mapping[str, int]) -> dict[str, list[tuple[int, int]]]:
    """(step, rank) of each layer at the start, and at each cut that changed it.

    Args:
        steps: of the whole run.
        start: ranks at its start, by layer.
    """
    found = {name: [(0, rank)] for name, rank in start.items()}
    for step in steps:
        for name, rank in (step.cut.after if step.cut is not None else {}).items():
            found.setdefault(name, []).append((step.step, rank))
    return found


def draw(steps: Sequence[Step], start: Mapping[str, int], metric: str) -> Figure:
    """Ranks over steps, as parts of those at the start, and the metric after each epoch over the MACs then.

    Args:
        steps: of the whole run, at least one.
        start: ranks at its start, by layer.
        metric: its name.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    ranks, scores = figure.subplots(1, 2)
    lines = {name: line for name, line in trajectories(steps, start).items() if len(line) > 1}
    for name, line in lines.items():
        along = [*line, (steps[-1].step, line[-1][1])]
        parts = [rank / line[0][1] for _, rank in along]
        ranks.step([step for step, _ in along], parts, where="post", label=name, linewidth=1)
    if 0 < len(lines) <= _MOST_NAMES:
        ranks.legend(fontsize="x-small")
    ranks.set(
        xlabel="step",
        ylabel="rank, part of that at the start",
        title=f"{len(lines)} layers lost ranks",
        ylim=(0, 1.05),
    )
    scored = [step for step in steps if step.score is not None]
    scores.plot([100 * step.macs for step in scored], [step.score for step in scored], marker="o")
    for step in scored:
        scores.annotate(f"epoch {step.epoch}", (100 * step.macs, step.score or 0.0), fontsize="x-small")
    scores.set(xlabel="MACs, % of the dense network's", ylabel=metric, title="after each epoch")
    scores.invert_xaxis()
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a picture; its ending says in which format."""
    figure.savefig(path, dpi=120)
