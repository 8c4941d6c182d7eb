"""Batches whose images are mixed in pairs, and their labels with them; the mixing is torchvision's."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2


class Mix(str, Enum):
    """How two images become one: all of both (Zhang et al. 2018), or a part of one in the other (Yun et al. 2019)."""

    NONE = "none"
    MIXUP = "mixup"
    CUTMIX = "cutmix"


@dataclass(frozen=True)
class MixedBatches:
    """A collate function.

    Args:
        mix: how; not NONE.
        classes: of the labels.
        collate: makes (images, labels) of what a data set gives.
    """

    mix: Mix
    classes: int
    collate: Any

    def __call__(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Images (n, channels, height, width) and probabilities (n, classes)."""
        images, labels = self.collate(batch)
        if len(images) < 2:
            return images, torch.nn.functional.one_hot(labels, self.classes).float()
        mixer = v2.MixUp if self.mix is Mix.MIXUP else v2.CutMix
        mixed, targets = mixer(num_classes=self.classes)(images, labels)
        return mixed, targets
