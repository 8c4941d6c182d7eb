"""How many images fit into memory while they walk through a network together."""

from __future__ import annotations

from collections.abc import Iterable

from ..lowrank.shapes import LayerShape

ACTIVATION_BYTES = 3 * 2**29
"""1.5 GiB for the activations that are alive at a time."""


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


def _bytes(shape: LayerShape) -> int:
    values = (
        shape.inputs * call.height_in * call.width_in + shape.outputs * call.height_out * call.width_out
        for call in shape.calls
    )
    return 4 * max(values, default=0)
