"""Ranks fall while the network learns.

Takes a low-rank network, images and a budget; gives it trained, at the ranks that the budget allows.
Source: DPRP (arXiv 2401.08014).
"""

from .config import FinetuneConfig, OptimizerKind, RankPenalty
from .factor_moments import input_moments
from .loop import finetune
from .metric import Metric
from .record import Cut, Step
from .run_folder import RunFolder

__all__ = [
    "Cut",
    "FinetuneConfig",
    "Metric",
    "OptimizerKind",
    "RankPenalty",
    "RunFolder",
    "Step",
    "finetune",
    "input_moments",
]
