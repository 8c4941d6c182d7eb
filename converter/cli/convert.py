"""`dprp convert`: a network becomes a compressed checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..chain.conversion import factorise
from ..chain.data import data_file, open_calibration
from ..chain.targets import check_compressed_target, write_plan
from ..chain.totals import costs, ranks
from ..chain.verdict import Verdict
from ..planning.plan import Plan
from ..storage.checkpoint import save_compressed
from .asked import asked_conversion, asked_network, asked_ranks, with_labels
from .verbs import ConvertOptions


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


def convert(asked: ConvertOptions) -> Converted:
    """Factors a network's layers and writes a compressed checkpoint.

    Raises:
        ConverterError, ModelsError: one sentence each; nothing has been written then.
    """
    inputs = (asked.checkpoint, asked.plan, asked.labels, data_file(asked.calibrate))
    target = check_compressed_target(asked.output, asked.save_plan, inputs=inputs, force=asked.force)
    wanted = asked_ranks(asked)
    config = asked_conversion(asked)
    network = with_labels(asked_network(asked, seed=asked.seed, dense=True), asked)
    images = open_calibration(asked.calibrate, network, config.images, asked.seed, download=asked.download)
    made = factorise(network, wanted, config, calibrate_on=images, progress=not asked.quiet)
    save_compressed(made.model, network.source, target, force=asked.force)
    if asked.save_plan is not None:
        write_plan(made.plan, asked.save_plan, force=asked.force)
    return Converted(made.plan, target, asked.save_plan, made.verdict)
