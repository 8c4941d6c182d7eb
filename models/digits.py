"""A small CNN for scikit-learn's bundled 8 x 8 digits, and the weights that ship with it.

Four 3x3 convolutions of 64, 64, 96 and 96 channels are more than the digits need. That is the point: at half
the MACs the accuracy stays, and the layers are heavy enough for the saving to show in milliseconds.
"""

from collections import OrderedDict
from pathlib import Path

from torch import nn

DIGITS_WEIGHTS = Path(__file__).parent / "weights" / "digits_cnn.safetensors"
"""Trained weights of `digits_cnn()`; `python -m dprp.models.pretrain_digits` makes them."""


def digits_cnn(classes: int = 10) -> nn.Sequential:
    """CNN for gray images of 8 x 8: 0.18 M parameters, 7.3 M MACs.

    Args:
        classes: outputs of the head, >= 1.

    Returns:
        A network (n, 1, 8, 8) -> (n, classes).
    """
    return nn.Sequential(
        OrderedDict(
            block1=_block(1, 64),
            block2=_block(64, 64),
            block3=_block(64, 96),
            pool=nn.MaxPool2d(2),
            block4=_block(96, 96),
            average=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            head=nn.Linear(96, classes),
        )
    )


def _block(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
            bn=nn.BatchNorm2d(channels_out),
            relu=nn.ReLU(),
        )
    )
