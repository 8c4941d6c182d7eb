"""From a dense network to a fused low-rank one: survey, plan, convert, fine-tune, fuse."""

from .calibrate import Calibration, calibrate
from .checkpoint import Loaded, Source, is_compressed, load_compressed, save_compressed
from .convert import convert, plan_of
from .costs import Unit, break_even_rank
from .decompose import Factors, decompose
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
from .evaluate import Accuracy, evaluate
from .finetune import FinetuneConfig, OptimizerKind, Step, finetune
from .fold import fold_batch_norms
from .forms import Form
from .fuse import fuse
from .input_moments import input_moments
from .layer_times import LayerTimes, chains_to_time
from .layers import LowRank, LowRankConv2d, LowRankLinear
from .losses import RankPenalty
from .plan import LayerPlan, Plan
from .planner import headroom, plan_ranks
from .policies import Budget, Energy, FixedRank, LatencyBudget, MacBudget, ParamBudget, RankRatio, parse_budget
from .sensitivity import Sensitivity, sensitivities
from .survey import Layer, Survey, survey

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
