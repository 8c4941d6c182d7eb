"""From a dense network to a fused low-rank one: survey, plan, convert, fine-tune, fuse.

Names load on first use: torch takes seconds, which `dprp --help` does not have, and ^C shall not be a traceback.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .allocator import keep_freed_memory
    from .analysis import (
        BLENDS,
        Accuracy,
        Calibration,
        Inputs,
        Layer,
        Losses,
        Sensitivity,
        Survey,
        calibrate,
        evaluate,
        foretell,
        sensitivities,
        survey,
    )
    from .conversion import Polish, PolishConfig, choose_plan, convert, fold_batch_norms, fuse, plan_of, polish
    from .errors import (
        BudgetError,
        CheckpointError,
        ConverterError,
        ConverterWarning,
        LayerError,
        ModelError,
        OptionError,
        PlanError,
        TrainingError,
    )
    from .lowrank import Factors, Form, LowRank, LowRankConv, LowRankLinear, Unit, break_even_rank, decompose
    from .planning import (
        Budget,
        Energy,
        FixedRank,
        LatencyBudget,
        LayerPlan,
        LayerTimes,
        MacBudget,
        ParamBudget,
        Plan,
        RankRatio,
        chains_to_time,
        headroom,
        parse_budget,
        plan_ranks,
    )
    from .storage import Loaded, Source, is_compressed, load_compressed, save_compressed
    from .training import (
        Cut,
        FinetuneConfig,
        Metric,
        OptimizerKind,
        RankPenalty,
        RunFolder,
        Step,
        finetune,
        input_moments,
    )

__all__ = [
    "BLENDS",
    "Accuracy",
    "Budget",
    "BudgetError",
    "Calibration",
    "CheckpointError",
    "ConverterError",
    "ConverterWarning",
    "Cut",
    "Energy",
    "Factors",
    "FinetuneConfig",
    "FixedRank",
    "Form",
    "Inputs",
    "LatencyBudget",
    "Layer",
    "LayerError",
    "LayerPlan",
    "LayerTimes",
    "Loaded",
    "Losses",
    "LowRank",
    "LowRankConv",
    "LowRankLinear",
    "MacBudget",
    "Metric",
    "ModelError",
    "OptimizerKind",
    "OptionError",
    "ParamBudget",
    "Plan",
    "PlanError",
    "Polish",
    "PolishConfig",
    "RankPenalty",
    "RankRatio",
    "RunFolder",
    "Sensitivity",
    "Source",
    "Step",
    "Survey",
    "TrainingError",
    "Unit",
    "break_even_rank",
    "calibrate",
    "chains_to_time",
    "choose_plan",
    "convert",
    "decompose",
    "evaluate",
    "finetune",
    "fold_batch_norms",
    "foretell",
    "fuse",
    "headroom",
    "input_moments",
    "is_compressed",
    "keep_freed_memory",
    "load_compressed",
    "parse_budget",
    "plan_of",
    "plan_ranks",
    "polish",
    "save_compressed",
    "sensitivities",
    "survey",
]

_HOMES = {
    "allocator": ("keep_freed_memory",),
    "analysis": (
        "BLENDS",
        "Accuracy",
        "Calibration",
        "Inputs",
        "Layer",
        "Losses",
        "Sensitivity",
        "Survey",
        "calibrate",
        "evaluate",
        "foretell",
        "sensitivities",
        "survey",
    ),
    "conversion": (
        "Polish",
        "PolishConfig",
        "choose_plan",
        "convert",
        "fold_batch_norms",
        "fuse",
        "plan_of",
        "polish",
    ),
    "errors": (
        "BudgetError",
        "CheckpointError",
        "ConverterError",
        "ConverterWarning",
        "LayerError",
        "ModelError",
        "OptionError",
        "PlanError",
        "TrainingError",
    ),
    "lowrank": (
        "Factors",
        "Form",
        "LowRank",
        "LowRankConv",
        "LowRankLinear",
        "Unit",
        "break_even_rank",
        "decompose",
    ),
    "planning": (
        "Budget",
        "Energy",
        "FixedRank",
        "LatencyBudget",
        "LayerPlan",
        "LayerTimes",
        "MacBudget",
        "ParamBudget",
        "Plan",
        "RankRatio",
        "chains_to_time",
        "headroom",
        "parse_budget",
        "plan_ranks",
    ),
    "storage": (
        "Loaded",
        "Source",
        "is_compressed",
        "load_compressed",
        "save_compressed",
    ),
    "training": (
        "Cut",
        "FinetuneConfig",
        "Metric",
        "OptimizerKind",
        "RankPenalty",
        "RunFolder",
        "Step",
        "finetune",
        "input_moments",
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
