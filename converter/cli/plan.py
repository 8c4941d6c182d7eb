"""`dprp plan`: a dry run that shows what each layer would become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...files import check_outputs
from ..analysis.sensitivity import Sensitivity
from ..conversion.converting import convert
from ..planning.plan import Plan
from ..planning.planner import DEFAULT_RANK_MULTIPLE
from .conversion import CALIBRATION_IMAGES, forms_from, plan_network, sensitivity_from
from .convert import wanted_ranks, write_plan
from .data import data_file, open_calibration
from .device import pick_device
from .errors import CliError
from .network import open_network
from .totals import costs, ranks
from .verdict import Verdict, judge


@dataclass(frozen=True)
class PlanAnswer:
    """A plan, the file that holds it if there is one, and what images say of the network that it makes."""

    plan: Plan
    output: Path | None
    verdict: Verdict | None = None

    def __str__(self) -> str:
        lines = [str(self.plan)]
        if self.verdict is not None:
            lines.append(f"converted so, {self.verdict}")
        if self.output is not None:
            lines.append(f"wrote {self.output}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "output": None if self.output is None else str(self.output),
            "budget": self.plan.budget,
            "ms": None if self.plan.dense_ms is None else {"dense": self.plan.dense_ms, "compressed": self.plan.ms},
            **costs(self.plan),
            "layers": ranks(self.plan),
            "errors": {name: layer.error for name, layer in self.plan.factored.items()},
            "dense": {layer.name: layer.reason for layer in self.plan if not layer.factored},
            "agreement": None if self.verdict is None else self.verdict.to_dict(),
        }


def plan(
    model: str,
    *,
    output: Path | str | None = None,
    checkpoint: Path | str | None = None,
    budget: str | None = None,
    ratio: float | None = None,
    rank: int | None = None,
    energy: float | None = None,
    forms: Sequence[str] = (),
    keep: Sequence[str] = (),
    rank_multiple: int = DEFAULT_RANK_MULTIPLE,
    calibrate: str | None = None,
    calibration_images: int = CALIBRATION_IMAGES,
    sensitivity: str = Sensitivity.BEST.value,
    threads: int = 1,
    classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    random_weights: bool = False,
    download: bool = False,
    force: bool = False,
    seed: int = 0,
    device: str = "auto",
) -> PlanAnswer:
    """Plans forms and ranks without converting anything.

    Args:
        output: file for the plan, which `convert` takes back; None writes nothing.
        force: write over an existing file.
        model, checkpoint, budget, ratio, rank, energy, forms, keep, rank_multiple, calibrate, calibration_images,
            sensitivity, threads, classes, input_shape, mean, std, random_weights, download, seed, device: as for
            `convert`.

    Raises:
        CliError, ConverterError, ModelsError: one sentence each; nothing has been written then.
    """
    wanted = wanted_ranks(budget, None, ratio, rank, energy)
    asked = forms_from(forms)
    target = None if output is None else Path(output)
    check_outputs(target, inputs=(checkpoint, data_file(calibrate)), force=force, error=CliError)
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
    planned = plan_network(
        network,
        wanted,
        forms=asked,
        keep=keep,
        rank_multiple=rank_multiple,
        calibrate_on=open_calibration(calibrate, network, calibration_images, seed, download=download),
        calibration_images=calibration_images,
        sensitivity=sensitivity_from(sensitivity),
        threads=threads,
        device=where,
    )
    verdict = None
    if planned.held_out is not None:
        dense = network.model.to(where)
        verdict = judge(dense, convert(dense, planned.plan, calibration=planned.calibration), planned, wanted)
    if target is not None:
        write_plan(planned.plan, target, force=force)
    return PlanAnswer(planned.plan, target, verdict)
