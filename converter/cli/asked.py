"""Options of the command line become what the chain takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ...models import ImageData
from ..chain.compressing import CompressConfig
from ..chain.conversion import ConversionConfig, forms_from, read_plan, sensitivity_from
from ..chain.device import pick_device
from ..chain.folder import RECIPE
from ..chain.labels import labels_of, read_labels
from ..chain.network import Network, open_network
from ..chain.runs import run_folder
from ..errors import OptionError
from ..planning.plan import Plan
from ..planning.policies import Energy, FixedRank, Policy, RankRatio, parse_budget
from ..training.run_folder import RunFolder
from .console import note
from .options.network import LabelOptions, NetworkOptions
from .recipes import written
from .verbs import CompressOptions, ConvertOptions, FinetuneOptions, PlanOptions


def asked_network(asked: NetworkOptions, *, seed: int, trust: str | None = None, dense: bool = False) -> Network:
    """The network that is meant.

    Raises:
        OptionError, ModelsError, CheckpointError: as for `open_network`.
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


def with_labels(network: Network, asked: LabelOptions, data: ImageData | None = None) -> Network:
    """A classifier with its outputs named: as the user says, else as the data says, else as before.

    Raises:
        OptionError: the file of names cannot be read, or does not fit.
        ModelError: as for `Network.classes`.
    """
    if asked.labels is not None:
        return network.labelled(read_labels(asked.labels, network.classes()))
    return network if data is None else network.labelled(labels_of(data, network.classes()))


def asked_conversion(asked: ConvertOptions | PlanOptions) -> ConversionConfig:
    """How to plan and to convert.

    Raises:
        OptionError: a number out of range, an unknown name, or a device that is not there.
    """
    polish = asked.polish if isinstance(asked, ConvertOptions) else 0
    return ConversionConfig(polish=polish, **_planning(asked))


def asked_compression(asked: CompressOptions) -> CompressConfig:
    """How to compress.

    Raises:
        OptionError, TrainingError: a number out of range, an unknown name, or a device that is not there.
    """
    return CompressConfig(
        polish=asked.polish,
        epochs=asked.epochs,
        headroom=asked.headroom,
        learning_rate=asked.learning_rate,
        distill=asked.distill,
        matching=asked.matching,
        mixed_precision=asked.mixed_precision,
        **_planning(asked),
    )


def asked_mix(asked: CompressOptions | FinetuneOptions, *, taught: bool) -> str:
    """How training images are mixed; in pairs where nothing but the teacher says what is right there.

    Args:
        asked: the options.
        taught: whether there is a teacher.
    """
    if asked.mix is not None:
        return asked.mix
    return "cutmix" if taught and asked.distill == 1 and asked.augment != "none" else "none"


def _planning(asked: CompressOptions | ConvertOptions | PlanOptions) -> dict[str, Any]:
    return {
        "forms": forms_from(asked.forms),
        "keep": asked.keep,
        "rank_multiple": asked.rank_multiple,
        "images": asked.calibration_images,
        "sensitivity": sensitivity_from(asked.sensitivity),
        "threads": asked.threads,
        "seed": asked.seed,
        "device": pick_device(asked.device),
    }


def asked_ranks(asked: ConvertOptions | PlanOptions) -> Policy | Plan:
    """The one of --budget, --plan, --ratio, --rank and --energy that was given.

    Raises:
        OptionError: none or several were given, or the plan cannot be read.
        BudgetError: a number out of range.
    """
    plan = asked.plan if isinstance(asked, ConvertOptions) else None
    given = [value for value in (asked.budget, plan, asked.ratio, asked.rank, asked.energy) if value is not None]
    if len(given) != 1:
        raise OptionError(
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


def asked_run(verb: str, asked: CompressOptions | FinetuneOptions) -> RunFolder | None:
    """The folder in which training survives, if there is to be one.

    Raises:
        OptionError, TrainingError: as for `run_folder`.
    """
    return run_folder(
        asked.output,
        folder=asked.run,
        resume=asked.resume,
        save_every=asked.save_every,
        texts={RECIPE: written(verb, replace(asked, run=None, resume=None))},
        log=asked.log,
        force=asked.force,
    )


@contextmanager
def told_how_to_go_on(verb: str, folder: RunFolder | None) -> Iterator[None]:
    """Says what to do after an interruption."""
    try:
        yield
    except KeyboardInterrupt:
        if folder is not None and folder.begun:
            note(f"the run is saved; go on with: dprp {verb} --resume {folder.path}")
        raise
