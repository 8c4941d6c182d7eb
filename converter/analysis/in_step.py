"""Batches that walk through one network in step: at meeting points each waits until all the others are there.

What a layer shall learn from all images need not have all of them in flight. A batch computes from one meeting to the
next while the others wait with no more than what they carry: the layer's input, and whatever joins further on. So
what lies between two meetings, wide maps for the most part, is in memory once and not for all images. A meeting may
be of some of the batches only: the others stay where they met last, and come by when all is decided there.

Each batch runs in a thread of its own, which is how a forward of anybody's can be held half way. Only one of them
runs at a time, in turn, so that nothing is computed at the same time and every run gives the same numbers.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from ..errors import ModelError
from .inputs import Samples
from .running import as_written, run

T = TypeVar("T")
R = TypeVar("R")


_THE_END = object()

_Precision = tuple[tuple[str, torch.dtype], ...]


def _autocast_now() -> _Precision:
    """Devices on which there is autocast, and in which type."""
    on = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
    return tuple((device, torch.get_autocast_dtype(device)) for device in on)


class OtherWaysError(ModelError):
    """Batches do not meet at the same places, as what the network does depends on its inputs."""


@dataclass
class _Meeting:
    """One that has begun.

    Attributes:
        where: names it.
        members: places of its batches, in rising order.
        values: what those that have come have brought.
        result: what was made of that.
    """

    where: object
    members: Sequence[int]
    values: list[Any] = field(default_factory=list)
    result: Any = None


class _OtherFailed(BaseException):
    """Ends the batches that wait when one of them fails."""


class InStep:
    """Batches that run by turns and meet.

    Args:
        count: of batches, >= 1.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._turn = 0
        self._place = threading.local()
        self._changed = threading.Condition()
        self._meeting: _Meeting | None = None
        self._failure: BaseException | None = None

    @property
    def place(self) -> int:
        """Which of the batches runs, from 0."""
        place: int = self._place.number
        return place

    def meet(
        self,
        where: object,
        value: T,
        combine: Callable[[list[Any]], R],
        gather: Callable[[list[Any], T], None] = list.append,
        members: Collection[int] | None = None,
    ) -> R:
        """Waits for all batches, or for some of them.

        Args:
            where: names the meeting; the same for all.
            value: what this batch brings.
            combine: makes one thing of what all have brought, in their order; called once.
            gather: adds to the list of what was brought; may join it with what is there, if that is large.
            members: places of those that meet, the first batch among them; None for all.

        Returns:
            What it made.

        Raises:
            OtherWaysError: the batches do not meet at the same places.
        """
        if self.place == 0:
            self._meeting = _Meeting(where, sorted(members or range(self._count)))
        meeting = self._meeting
        if meeting is None or meeting.where != where:
            raise self._apart()
        gather(meeting.values, value)
        if self.place == meeting.members[-1]:
            self._meeting, values = None, meeting.values
            meeting.values = []
            meeting.result = combine(values)
        self._pass_on()
        return meeting.result  # type: ignore[no-any-return]

    def run(self, walk: Callable[[int], None]) -> None:
        """Walks all batches to their ends.

        Args:
            walk: of the batch with this number; meets the others on its way.

        Raises:
            BaseException: the first that a walk raised; the others have been ended.
        """
        if self._count == 1:
            self._place.number = 0
            walk(0)
            return
        precision = _autocast_now()
        threads = [
            threading.Thread(target=self._walked, args=(walk, place, precision), name=f"dprp in step {place}")
            for place in range(self._count)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException as error:  # an interrupt reaches this thread alone
            self._fail(error)
            for thread in threads:
                thread.join()
            raise
        if self._failure is not None:
            raise self._failure

    def _walked(self, walk: Callable[[int], None], place: int, precision: _Precision) -> None:
        self._place.number = place
        try:
            self._wait()
            with contextlib.ExitStack() as stack:  # of what each thread has for itself
                stack.enter_context(torch.no_grad())
                for device, dtype in precision:
                    stack.enter_context(torch.autocast(device, dtype))
                walk(place)
            if place == 0:
                self._meeting = _Meeting(_THE_END, range(self._count))
            elif self._meeting is None or self._meeting.where is not _THE_END:
                raise self._apart()
            self._give(place + 1)
        except _OtherFailed:
            pass
        except BaseException as error:
            self._fail(error)

    def _pass_on(self) -> None:
        if self._count > 1:
            self._give((self.place + 1) % self._count)
            self._wait()

    def _give(self, place: int) -> None:
        with self._changed:
            self._turn = place
            self._changed.notify_all()

    def _wait(self) -> None:
        """For this batch's turn, which it passes on where the meeting is not for it."""
        with self._changed:
            while not self._invited():
                if self._turn == self.place:
                    self._turn = (self.place + 1) % self._count
                    self._changed.notify_all()
                self._changed.wait_for(lambda: self._turn == self.place or self._failure is not None)
            if self._failure is not None:
                raise _OtherFailed

    def _invited(self) -> bool:
        if self._failure is not None:
            return True
        there = self.place == 0 or (self._meeting is not None and self.place in self._meeting.members)
        return self._turn == self.place and there

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if self._failure is None:
                self._failure = error
            self._changed.notify_all()

    def _apart(self) -> OtherWaysError:
        return OtherWaysError("batches of the images take different ways through the network; give one batch")


def run_in_step(model: nn.Module, batches: Sequence[Samples], step: InStep) -> None:
    """Runs a network on several batches whose layers meet in `step`.

    Args:
        model: in eval mode.
        batches: as many as `step` counts.
        step: that the model's layers meet in.

    Raises:
        OtherWaysError: the batches take different ways.
        ModelError: the model cannot take the inputs.
    """

    def walk(place: int) -> None:
        run(model, batches[place])

    with as_written(model):
        step.run(walk)
