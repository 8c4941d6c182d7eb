"""`dprp plan`: a dry run that shows what each layer would become."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...files import check_outputs
from ..chain.conversion import plan_network
from ..chain.data import data_file, open_calibration
from ..chain.targets import write_plan
from ..chain.totals import costs, ranks
from ..chain.verdict import Verdict, judge
from ..conversion.converting import convert
from ..errors import OptionError
from ..planning.plan import Plan
from .asked import asked_conversion, asked_network, asked_ranks
from .verbs import PlanOptions


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


def plan(asked: PlanOptions) -> PlanAnswer:
    """Plans forms and ranks without converting anything.

    Raises:
        ConverterError, ModelsError: one sentence each; nothing has been written then.
    """
    wanted = asked_ranks(asked)
    target = asked.output
    inputs = (asked.checkpoint, data_file(asked.calibrate))
    check_outputs(target, inputs=inputs, force=asked.force, error=OptionError)
    config = asked_conversion(asked)
    network = asked_network(asked, seed=asked.seed, dense=True)
    images = open_calibration(asked.calibrate, network, config.images, asked.seed, download=asked.download)
    planned = plan_network(network, wanted, config, calibrate_on=images)
    verdict = None
    if planned.held_out is not None:
        dense = network.model.to(config.device)
        verdict = judge(dense, convert(dense, planned.plan, calibration=planned.calibration), planned, wanted)
    if target is not None:
        write_plan(planned.plan, target, force=asked.force)
    return PlanAnswer(planned.plan, target, verdict)
