"""From a dense network to a fused low-rank one: survey, plan, convert, fine-tune, fuse.

Names load on first use: torch takes seconds, which `dprp --help` does not have, and ^C shall not be a traceback.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .accuracy import Accuracy, evaluate
    from .calibration import Calibration, calibrate
    from .checkpoint import Loaded, is_compressed, load_compressed, save_compressed
    from .conversion import convert, plan_of
    from .costs import Unit, break_even_rank
    from .decomposition import Factors, decompose
    from .errors import (
        BudgetError,
        CheckpointError,
        ConverterError,
        ConverterWarning,
        LayerError,
        ModelError,
        PlanError,
        TrainingError,
    )
    from .factor_moments import input_moments
    from .fold import fold_batch_norms
    from .forms import Form
    from .fusion import fuse
    from .layer_times import LayerTimes, chains_to_time
    from .layers import LowRank, LowRankConv2d, LowRankLinear
    from .losses import RankPenalty
    from .plan import LayerPlan, Plan
    from .planner import headroom, plan_ranks
    from .policies import Budget, Energy, FixedRank, LatencyBudget, MacBudget, ParamBudget, RankRatio, parse_budget
    from .sensitivity import Sensitivity, sensitivities
    from .source import Source
    from .surveying import Layer, Survey, survey
    from .training import finetune
    from .training_config import FinetuneConfig, OptimizerKind, Step

__all__ = [
    "Accuracy",
    "Budget",
    "BudgetError",
    "Calibration",
    "CheckpointError",
    "ConverterError",
    "ConverterWarning",
    "Energy",
    "Factors",
    "FinetuneConfig",
    "FixedRank",
    "Form",
    "LatencyBudget",
    "Layer",
    "LayerError",
    "LayerPlan",
    "LayerTimes",
    "Loaded",
    "LowRank",
    "LowRankConv2d",
    "LowRankLinear",
    "MacBudget",
    "ModelError",
    "OptimizerKind",
    "ParamBudget",
    "Plan",
    "PlanError",
    "RankPenalty",
    "RankRatio",
    "Sensitivity",
    "Source",
    "Step",
    "Survey",
    "TrainingError",
    "Unit",
    "break_even_rank",
    "calibrate",
    "chains_to_time",
    "convert",
    "decompose",
    "evaluate",
    "finetune",
    "fold_batch_norms",
    "fuse",
    "headroom",
    "input_moments",
    "is_compressed",
    "load_compressed",
    "parse_budget",
    "plan_of",
    "plan_ranks",
    "save_compressed",
    "sensitivities",
    "survey",
]

_HOMES = {
    "calibration": (
        "Calibration",
        "calibrate",
    ),
    "checkpoint": (
        "Loaded",
        "is_compressed",
        "load_compressed",
        "save_compressed",
    ),
    "conversion": (
        "convert",
        "plan_of",
    ),
    "costs": (
        "Unit",
        "break_even_rank",
    ),
    "decomposition": (
        "Factors",
        "decompose",
    ),
    "errors": (
        "BudgetError",
        "CheckpointError",
        "ConverterError",
        "ConverterWarning",
        "LayerError",
        "ModelError",
        "PlanError",
        "TrainingError",
    ),
    "accuracy": (
        "Accuracy",
        "evaluate",
    ),
    "training": ("finetune",),
    "fold": ("fold_batch_norms",),
    "forms": ("Form",),
    "fusion": ("fuse",),
    "factor_moments": ("input_moments",),
    "layer_times": (
        "LayerTimes",
        "chains_to_time",
    ),
    "layers": (
        "LowRank",
        "LowRankConv2d",
        "LowRankLinear",
    ),
    "losses": ("RankPenalty",),
    "plan": (
        "LayerPlan",
        "Plan",
    ),
    "planner": (
        "headroom",
        "plan_ranks",
    ),
    "policies": (
        "Budget",
        "Energy",
        "FixedRank",
        "LatencyBudget",
        "MacBudget",
        "ParamBudget",
        "RankRatio",
        "parse_budget",
    ),
    "sensitivity": (
        "Sensitivity",
        "sensitivities",
    ),
    "source": ("Source",),
    "surveying": (
        "Layer",
        "Survey",
        "survey",
    ),
    "training_config": (
        "FinetuneConfig",
        "OptimizerKind",
        "Step",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
