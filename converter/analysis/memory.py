"""How many images fit into memory while they walk through a network together."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..lowrank.shapes import LayerShape, Map

ACTIVATION_BYTES = 2**30
"""For the activations that are alive at a time: the same on all machines, which so learn from the same images."""

_AT_ONCE = 2**29

_MOST_BATCHES = 64
"""That walk through a network in step, each in a thread of its own."""


def images_in_memory(shapes: Iterable[LayerShape | None], wanted: int, *, networks: int = 1) -> int:
    """Images that may be in flight at once, at least one.

    Args:
        shapes: the network's layers; None is passed over.
        wanted: how many images there are.
        networks: how many networks they walk through side by side.
    """
    largest = max((_bytes(shape) for shape in shapes if shape is not None), default=1)
    # A layer's input and output are alive together, and about as much again in a branch beside it.
    return max(1, min(wanted, ACTIVATION_BYTES // (2 * networks * max(1, largest))))


def images_waiting(shape: LayerShape) -> int:
    """Images that may wait before a layer of two networks, while some of them go on; at least one."""
    return max(1, ACTIVATION_BYTES // max(1, _bytes_waiting(shape)))


def images_in_step(shapes: Iterable[LayerShape | None], wanted: int) -> int:
    """Images that walk through two networks in step, at least one.

    Args:
        shapes: the network's layers; None is passed over.
        wanted: how many images there are.
    """
    return max(1, min(wanted, _MOST_BATCHES * images_at_once(shapes)))


def images_at_once(shapes: Iterable[LayerShape | None]) -> int:
    """Images that go on together, in two networks, while others wait; at least one."""
    largest = max((_bytes(shape) for shape in shapes if shape is not None), default=1)
    return max(1, _AT_ONCE // (4 * max(1, largest)))


def bytes_kept(shape: LayerShape) -> int:
    """Of what a layer reads and gives in all its calls, for one image."""
    return sum(_values(shape, call) * 4 for call in shape.calls)


def _bytes(shape: LayerShape) -> int:
    return 4 * max((_values(shape, call) for call in shape.calls), default=0)


def _bytes_waiting(shape: LayerShape) -> int:
    """What a layer reads in each network, half as much again in a branch beside it, and what the dense one gives."""
    return 4 * max((3 * _read(shape, call) + _given(shape, call) for call in shape.calls), default=0)


def _values(shape: LayerShape, call: Map) -> int:
    return _read(shape, call) + _given(shape, call)


def _read(shape: LayerShape, call: Map) -> int:
    return shape.inputs * math.prod(call.size_in)


def _given(shape: LayerShape, call: Map) -> int:
    return shape.outputs * math.prod(call.size_out)
