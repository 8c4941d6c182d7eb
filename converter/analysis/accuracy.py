"""Top-1 accuracy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .probe import evaluating
from .running import run

Batches = Iterable[tuple[Tensor, Tensor]]
"""Re-iterable (images (N, C, H, W) float, labels (N,) int) pairs, for instance a DataLoader."""


@dataclass(frozen=True)
class Accuracy:
    """Top-1 in percent, and the number of images it was counted on."""

    top1: float
    images: int

    def __str__(self) -> str:
        return f"{self.top1:.2f} % top-1 on {self.images:,} images"


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Batches) -> Accuracy:
    """Counts how often the largest output is the label.

    Args:
        model: gives (N, classes); runs in eval mode, on the device of its first parameter.
        batches: images and labels.

    Raises:
        ModelError: no images, or outputs that are not one row of classes an image.
    """
    device = device_of(model)
    right = images = 0
    with evaluating(model):
        for inputs, labels in batches:
            outputs = run(model, inputs.to(device))
            if not isinstance(outputs, Tensor) or outputs.dim() != 2 or len(outputs) != len(labels):
                raise ModelError(
                    "the model does not give one row of class scores an image "
                    f"(got {type(outputs).__name__} for {len(labels)} images); only classifiers can be evaluated"
                )
            if not bool(outputs.isfinite().all()):
                raise ModelError(
                    "the model's scores are not finite on these images; a top-1 of them would mean nothing: check "
                    "its weights and the scale of the images"
                )
            right += int((outputs.argmax(1).cpu() == labels.cpu()).sum())
            images += len(labels)
    if images == 0:
        raise ModelError("there are no images to evaluate on; give a data set with test images")
    return Accuracy(100.0 * right / images, images)


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first parameter is; the CPU for a model that has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
