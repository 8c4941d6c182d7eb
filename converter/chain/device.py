"""Where a verb computes."""

from __future__ import annotations

import torch

from ..errors import OptionError


def pick_device(device: str) -> torch.device:
    """The device by its name.

    Args:
        device: `cpu`, `cuda`, or `auto`: the GPU where there is one.

    Raises:
        OptionError: another name, or `cuda` without a GPU that torch can use.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise OptionError(f"device {device!r} is not one of auto, cpu, cuda; choose one of these")
    if device == "cuda" and not torch.cuda.is_available():
        raise OptionError("--device cuda: torch finds no GPU that it can use here; pass --device cpu")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
