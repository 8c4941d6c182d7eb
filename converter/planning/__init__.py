"""A budget becomes a plan.

Takes what the analysis found and a budget; gives a form and a rank for each layer, or the reason why it stays.
A plan is plain data, to be read and edited.
"""

from .layer_times import LayerTimes, chains_to_time
from .plan import LayerPlan, Plan
from .planner import headroom, plan_ranks
from .policies import Budget, Energy, FixedRank, LatencyBudget, MacBudget, ParamBudget, RankRatio, parse_budget

__all__ = [
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
]
