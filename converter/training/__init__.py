"""Ranks fall while the network learns.

Takes a low-rank network, images and a budget; gives it trained, at the ranks that the budget allows.
Source: DPRP (arXiv 2401.08014).
"""

from .config import FinetuneConfig, OptimizerKind, Step
from .factor_moments import input_moments
from .finetuning import finetune
from .losses import RankPenalty

__all__ = [
    "FinetuneConfig",
    "OptimizerKind",
    "RankPenalty",
    "Step",
    "finetune",
    "input_moments",
]
