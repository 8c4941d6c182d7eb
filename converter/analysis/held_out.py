"""Images to fit on, and others to judge by."""

from __future__ import annotations

from .inputs import Samples, joined


def hold_out(images: Samples) -> tuple[Samples, Samples]:
    """Four fifths of the images to fit on, and the other fifth to judge by: every fifth one, from the first."""
    return joined([images[start::5] for start in range(1, 5)]), images[::5]
