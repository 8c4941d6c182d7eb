"""Options of the command line become what the chain takes."""

from __future__ import annotations

import torch

from ..planning.plan import Plan
from ..planning.policies import Energy, FixedRank, Policy, RankRatio, parse_budget
from .conversion import ConversionConfig, forms_from, read_plan, sensitivity_from
from .errors import CliError
from .network import Network, open_network
from .options.network import NetworkOptions
from .verbs import CompressOptions, ConvertOptions, PlanOptions


def asked_network(asked: NetworkOptions, *, seed: int, trust: str | None = None, dense: bool = False) -> Network:
    """The network that is meant.

    Raises:
        CliError, ModelsError, CheckpointError: as for `open_network`.
    """
    return open_network(
        asked.model,
        checkpoint=asked.checkpoint,
        classes=asked.classes,
        input_shape=asked.input_shape,
        mean=asked.mean,
        std=asked.std,
        random_weights=asked.random_weights,
        trust=trust,
        dense=dense,
        seed=seed,
    )


def asked_conversion(
    asked: CompressOptions | ConvertOptions | PlanOptions, device: torch.device, *, polish: int | None = None
) -> ConversionConfig:
    """How to plan and to convert.

    Raises:
        CliError: a number out of range, or an unknown name.
    """
    return ConversionConfig(
        forms=forms_from(asked.forms),
        keep=asked.keep,
        rank_multiple=asked.rank_multiple,
        images=asked.calibration_images,
        sensitivity=sensitivity_from(asked.sensitivity),
        polish=polish,
        threads=asked.threads,
        seed=asked.seed,
        device=device,
    )


def asked_ranks(asked: ConvertOptions | PlanOptions) -> Policy | Plan:
    """The one of --budget, --plan, --ratio, --rank and --energy that was given.

    Raises:
        CliError: none or several were given, or the plan cannot be read.
        BudgetError: a number out of range.
    """
    plan = asked.plan if isinstance(asked, ConvertOptions) else None
    given = [value for value in (asked.budget, plan, asked.ratio, asked.rank, asked.energy) if value is not None]
    if len(given) != 1:
        raise CliError(
            f"{len(given) or 'none'} of --budget, --plan, --ratio, --rank and --energy given; "
            "give exactly one, for example --budget macs=0.5"
        )
    if asked.budget is not None:
        return parse_budget(asked.budget)
    if plan is not None:
        return read_plan(plan)
    if asked.ratio is not None:
        return RankRatio(asked.ratio)
    if asked.rank is not None:
        return FixedRank(asked.rank)
    assert asked.energy is not None
    return Energy(asked.energy)
