"""Images to fit on, and others to judge by."""

from __future__ import annotations

import torch
from torch import Tensor


def hold_out(images: Tensor) -> tuple[Tensor, Tensor]:
    """Four fifths of the images to fit on, and the other fifth to judge by: every fifth one, from the first."""
    return torch.cat([images[start::5] for start in range(1, 5)]), images[::5]
