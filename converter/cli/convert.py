"""`dprp convert`: a network becomes a compressed checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...files import check_outputs, written_whole
from ..chain.conversion import factorise
from ..chain.data import data_file, open_calibration
from ..chain.totals import costs, ranks
from ..chain.verdict import Verdict
from ..errors import CheckpointError, OptionError
from ..planning.plan import Plan
from ..storage.checkpoint import save_compressed
from .asked import asked_conversion, asked_network, asked_ranks
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
    inputs = (asked.checkpoint, asked.plan, data_file(asked.calibrate))
    target = check_compressed_target(asked.output, asked.save_plan, inputs=inputs, force=asked.force)
    wanted = asked_ranks(asked)
    config = asked_conversion(asked)
    network = asked_network(asked, seed=asked.seed, dense=True)
    images = open_calibration(asked.calibrate, network, config.images, asked.seed, download=asked.download)
    made = factorise(network, wanted, config, calibrate_on=images, progress=not asked.quiet)
    save_compressed(made.model, network.source, target, force=asked.force)
    if asked.save_plan is not None:
        write_plan(made.plan, asked.save_plan, force=asked.force)
    return Converted(made.plan, target, asked.save_plan, made.verdict)


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
        OptionError: not a .safetensors, or as `check_outputs`.
    """
    target = Path(output)
    if target.suffix != ".safetensors":
        raise OptionError(f"{target}: a compressed checkpoint is a .safetensors file; name it so")
    check_outputs(target, *others, inputs=inputs, force=force, error=OptionError)
    return target


def write_plan(plan: Plan, path: Path, *, force: bool) -> None:
    """Writes a plan as JSON.

    Raises:
        CheckpointError: the file may not be written.
    """
    with written_whole(path, force=force, error=CheckpointError) as temporary:
        temporary.write_text(plan.to_json() + "\n", encoding="utf-8")
