"""The algebra: a weight, the ways to cut it in two, and what either half costs.

Takes a weight and its geometry; gives factors of any rank, their costs, and layers that compute with them.
Knows nothing of networks.
"""

from .costs import Unit, break_even_rank
from .decomposition import Factors, decompose
from .forms import Form
from .layers import LowRank, LowRankConv, LowRankLinear

__all__ = [
    "Factors",
    "Form",
    "LowRank",
    "LowRankConv",
    "LowRankLinear",
    "Unit",
    "break_even_rank",
    "decompose",
]
