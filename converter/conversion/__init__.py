"""A plan becomes a network, and plain layers again.

Takes a network and its plan; gives one with low-rank layers, fitted on images if there are some, and fuses them.
All of it or nothing.
"""

from .attached import plan_of
from .choosing import choose_plan
from .converting import convert
from .fold import fold_batch_norms
from .fusion import fuse
from .polishing import Polish, PolishConfig, polish

__all__ = [
    "Polish",
    "PolishConfig",
    "choose_plan",
    "convert",
    "fold_batch_norms",
    "fuse",
    "plan_of",
    "polish",
]
