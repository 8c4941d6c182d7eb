"""`dprp convert`: a network becomes a compressed checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...files import check_outputs, written_whole
from ..analysis.sensitivity import Sensitivity
from ..errors import CheckpointError
from ..planning.plan import Plan
from ..planning.planner import DEFAULT_RANK_MULTIPLE
from ..planning.policies import Energy, FixedRank, Policy, RankRatio, parse_budget
from ..storage.checkpoint import save_compressed
from .conversion import CALIBRATION_IMAGES, factorise, forms_from, read_plan, sensitivity_from
from .data import data_file, open_calibration
from .device import pick_device
from .errors import CliError
from .network import open_network
from .totals import costs, ranks
from .verdict import Verdict


@dataclass(frozen=True)
class Converted:
    """What `convert` did.

    Attributes:
        plan: the forms and ranks.
        output: the compressed checkpoint.
        plan_file: the plan, if it was asked for.
        verdict: what calibration images that it was not fitted on say of it; None without.
    """

    plan: Plan
    output: Path
    plan_file: Path | None
    verdict: Verdict | None = None

    def __str__(self) -> str:
        files = " and ".join(str(file) for file in (self.output, self.plan_file) if file is not None)
        said = "" if self.verdict is None else f"\n{self.verdict}"
        return f"{self.plan}{said}\nwrote {files}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "output": str(self.output),
            "plan": None if self.plan_file is None else str(self.plan_file),
            "budget": self.plan.budget,
            **costs(self.plan),
            "layers": ranks(self.plan),
            "agreement": None if self.verdict is None else self.verdict.to_dict(),
        }


def convert(
    model: str,
    *,
    output: Path | str,
    checkpoint: Path | str | None = None,
    budget: str | None = None,
    plan: Path | str | None = None,
    ratio: float | None = None,
    rank: int | None = None,
    energy: float | None = None,
    forms: Sequence[str] = (),
    keep: Sequence[str] = (),
    rank_multiple: int = DEFAULT_RANK_MULTIPLE,
    calibrate: str | None = None,
    calibration_images: int = CALIBRATION_IMAGES,
    sensitivity: str = Sensitivity.BEST.value,
    polish: int | None = None,
    threads: int = 1,
    save_plan: Path | str | None = None,
    classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    random_weights: bool = False,
    download: bool = False,
    force: bool = False,
    seed: int = 0,
    device: str = "auto",
) -> Converted:
    """Factors a network's layers and writes a compressed checkpoint.

    Args:
        model: a name or `package.module:function`.
        output: the compressed checkpoint, a `.safetensors`.
        checkpoint: weights.
        budget: such as "macs=0.5"; exactly one of this and the next four says how far to go.
        plan: file of a plan, perhaps edited by hand.
        ratio: part of each layer's full rank.
        rank: the same rank for every layer.
        energy: part of each layer's energy to keep.
        forms: channel, pointwise, spatial; () for all.
        keep: name patterns of layers that stay dense.
        rank_multiple: ranks are multiples of this under a budget.
        calibrate: images to plan and to fit the factors on, as `dprp.models.load_data` takes them.
        calibration_images: how many of these at most.
        sensitivity: best, energy, kl or mixed; what a budget's plan takes as a layer's loss, where there are images.
        polish: steps of training without labels after conversion, where there are images; 0 for none, None for a
            minute or two of it.
        threads: of ONNX Runtime, where a budget is on latency.
        save_plan: file for the plan.
        classes, input_shape, mean, std: None for the architecture's own.
        random_weights: go on without a checkpoint.
        download: let torchvision fetch its data set.
        force: write over existing files.
        seed: of random weights, the choice of images, and polishing.
        device: auto, cpu or cuda.

    Raises:
        CliError, ConverterError, ModelsError: one sentence each; nothing has been written then.
    """
    plan_file = None if save_plan is None else Path(save_plan)
    target = check_compressed_target(output, plan_file, inputs=(checkpoint, plan, data_file(calibrate)), force=force)
    wanted = wanted_ranks(budget, plan, ratio, rank, energy)
    asked = forms_from(forms)
    where = pick_device(device)
    network = open_network(
        model,
        checkpoint=checkpoint,
        classes=classes,
        input_shape=input_shape,
        mean=mean,
        std=std,
        random_weights=random_weights,
        dense=True,
        seed=seed,
    )
    made = factorise(
        network,
        wanted,
        forms=asked,
        keep=keep,
        rank_multiple=rank_multiple,
        calibrate_on=open_calibration(calibrate, network, calibration_images, seed, download=download),
        calibration_images=calibration_images,
        sensitivity=sensitivity_from(sensitivity),
        polish_steps=polish,
        threads=threads,
        seed=seed,
        device=where,
    )
    save_compressed(made.model, network.source, target, force=force)
    if plan_file is not None:
        write_plan(made.plan, plan_file, force=force)
    return Converted(made.plan, target, plan_file, made.verdict)


def wanted_ranks(
    budget: str | None, plan: Path | str | None, ratio: float | None, rank: int | None, energy: float | None
) -> Policy | Plan:
    """The one of these that was given.

    Raises:
        CliError: none or several were given, or the plan cannot be read.
        BudgetError: a number out of range.
    """
    given = [value for value in (budget, plan, ratio, rank, energy) if value is not None]
    if len(given) != 1:
        raise CliError(
            f"{len(given) or 'none'} of --budget, --plan, --ratio, --rank and --energy given; "
            "give exactly one, for example --budget macs=0.5"
        )
    if budget is not None:
        return parse_budget(budget)
    if plan is not None:
        return read_plan(plan)
    if ratio is not None:
        return RankRatio(ratio)
    if rank is not None:
        return FixedRank(rank)
    assert energy is not None
    return Energy(energy)


def check_compressed_target(
    output: Path | str, *others: Path | None, inputs: Iterable[Path | str | None], force: bool
) -> Path:
    """Refuses a name that a compressed checkpoint cannot be written to, before any work is done.

    Args:
        output: the compressed checkpoint.
        others: what is written beside it.
        inputs: what is read.
        force: whether existing files may be replaced.

    Raises:
        CliError: not a .safetensors, or as `check_outputs`.
    """
    target = Path(output)
    if target.suffix != ".safetensors":
        raise CliError(f"{target}: a compressed checkpoint is a .safetensors file; name it so")
    check_outputs(target, *others, inputs=inputs, force=force, error=CliError)
    return target


def write_plan(plan: Plan, path: Path, *, force: bool) -> None:
    """Writes a plan as JSON.

    Raises:
        CheckpointError: the file may not be written.
    """
    with written_whole(path, force=force, error=CheckpointError) as temporary:
        temporary.write_text(plan.to_json() + "\n", encoding="utf-8")
