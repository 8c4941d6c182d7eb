"""All images on their way through two networks, in batches that walk in step.

A layer learns from as many of them as may wait before it. The batches that it does not need stay where they waited
last, and come by when it is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..allocator import give_back
from ..analysis.in_step import InStep
from ..analysis.memory import images_waiting
from ..lowrank.shapes import LayerShape
from .windows import Batch

_LAYERS_BEHIND = 2
"""So many behind a layer before which not all images may wait: the others come by there, and leave holes behind."""


@dataclass
class Walk:
    """All images on their way.

    Attributes:
        step: in which batches meet.
        batches: in order.
    """

    step: InStep
    batches: Sequence[Batch]
    _room_to_make: int = field(default=-1, init=False)  # in so many layers more

    @property
    def here(self) -> Batch:
        """The one that runs."""
        return self.batches[self.step.place]

    @property
    def images(self) -> int:
        """In all batches."""
        return sum(batch.images for batch in self.batches)

    def arrive(self, learning: Sequence[int]) -> None:
        """Is told by each batch that comes to a layer, and gives back what wide maps left behind.

        Args:
            learning: the batches that the layer learns from.
        """
        if self.step.place == 0:
            full = len(learning) < len(self.batches)
            self._room_to_make = _LAYERS_BEHIND if full else max(-1, self._room_to_make - 1)
            if self._room_to_make >= 0:
                give_back()

    def learning(self, shape: LayerShape) -> list[int]:
        """Places of the batches that a layer learns from: of both kinds, as many as may wait before it."""
        fit = images_waiting(shape)
        if fit >= self.images:
            return list(range(len(self.batches)))
        places = []
        for judges, some in ((False, fit - fit // 3), (True, fit // 3)):
            taken = 0
            for place, batch in enumerate(self.batches):
                if batch.judges is judges and (not taken or taken + batch.images <= some):
                    places.append(place)
                    taken += batch.images
        return places
