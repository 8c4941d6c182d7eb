"""Where a run's states are kept: in memory, which is enough to take back a step, or in a folder."""

from __future__ import annotations

import io
from typing import Any, Protocol

import torch

from .record import Step


class Keeper(Protocol):
    """Keeps states, and the record of what was done until then."""

    def due(self, steps: int, *, epoch_over: bool) -> bool:
        """Whether to save now, so many steps after the last time."""

    def save(self, state: dict[str, Any]) -> None:
        """Takes a state."""

    def load(self) -> dict[str, Any]:
        """The last one."""

    def tell(self, step: Step) -> None:
        """Takes note of a step."""

    def rewind(self, step: int) -> None:
        """Forgets what was told of later steps."""


class InMemory:
    """The state at the start of the epoch, for a run that has no folder."""

    def __init__(self) -> None:
        self._saved = b""

    def due(self, steps: int, *, epoch_over: bool) -> bool:
        """After each epoch."""
        return steps > 0 and epoch_over

    def save(self, state: dict[str, Any]) -> None:
        """Takes a copy."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self._saved = buffer.getvalue()

    def load(self) -> dict[str, Any]:
        """The last one."""
        state: dict[str, Any] = torch.load(io.BytesIO(self._saved), map_location="cpu", weights_only=True)
        return state

    def tell(self, step: Step) -> None:
        """Nobody will ask."""

    def rewind(self, step: int) -> None:
        """There is nothing to forget."""
