"""From a dense network to a low-rank one: survey, plan, convert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ...files import check_input, reading
from ..analysis.agreement import agreement
from ..analysis.calibration import Calibration, calibrate
from ..analysis.held_out import hold_out
from ..analysis.inputs import Samples
from ..analysis.losses import Sensitivity
from ..analysis.sensitivity import foretell
from ..analysis.surveying import Survey, survey
from ..conversion.candidates import best_plan
from ..conversion.choosing import usual_trials
from ..conversion.converting import convert
from ..conversion.polishing import PolishConfig, polish, usual_steps
from ..errors import OptionError, PlanError
from ..lowrank.forms import Form
from ..planning.plan import Plan
from ..planning.planner import headroom, plan_ranks
from ..planning.policies import LatencyBudget, MacBudget, ParamBudget, Policy
from .data import CalibrationBatches, split_calibration
from .network import Network
from .planned import Planned
from .polish_bar import polish_bar
from .times import time_layers
from .verdict import Polished, Verdict, judge

CALIBRATION_IMAGES = 2000
_FEWEST_TO_POLISH = 10
_LARGEST_PLAN = 64 * 2**20
BASE_FORMS = (Form.CHANNEL, Form.POINTWISE, Form.SPATIAL)


@dataclass(frozen=True)
class Conversion:
    """What became of a network.

    Attributes:
        plan: where the ranks shall end up.
        model: the low-rank network on the CPU, at the plan's ranks or, for fine-tuning to choose, above them.
        calibration: what it was fitted on; None without.
        held_out: images to judge by; None without calibration.
        verdict: what these say; None without them, and where nobody asked.
        polished: what polishing did; None without it.
    """

    plan: Plan
    model: nn.Module
    calibration: Calibration | None
    held_out: Samples | None = None
    verdict: Verdict | None = None
    polished: Polished | None = None


@dataclass(frozen=True)
class ConversionConfig:
    """How to plan and to convert.

    Attributes:
        forms: that may be used, () for all.
        keep: name patterns of layers that stay dense.
        rank_multiple: ranks are multiples of this under a budget, >= 1; None as in `plan_ranks`.
        images: to plan and to fit the factors on at most, where there are any.
        sensitivity: what a budget's plan takes as a layer's loss, where there are images.
        polish: steps of training without labels on the images; 0 for none, None for as many as suit.
        threads: of ONNX Runtime, where a budget is on latency.
        seed: of polishing.
        device: where to compute; None for the CPU.

    Raises:
        OptionError: a number out of range.
    """

    forms: Sequence[Form] = ()
    keep: Sequence[str] = ()
    rank_multiple: int | None = None
    images: int = CALIBRATION_IMAGES
    sensitivity: Sensitivity = Sensitivity.BEST
    polish: int | None = None
    threads: int = 1
    seed: int = 0
    device: torch.device | None = None

    def __post_init__(self) -> None:
        if self.rank_multiple is not None and self.rank_multiple < 1:
            raise OptionError(f"rank multiple {self.rank_multiple} is below 1; give 1 to allow every rank, or 8")
        if self.images < 0:
            raise OptionError(f"calibration images {self.images} is below 0; give 0 to go without, or about 2000")
        if self.polish is not None and self.polish < 0:
            raise OptionError(f"polish steps {self.polish} is below 0; give 0 to leave the closed form, or about 300")
        if self.threads < 1:
            raise OptionError(f"threads {self.threads} is below 1; give the number of CPU threads for the latency")


def factorise(
    network: Network,
    wanted: Policy | Plan,
    config: ConversionConfig,
    *,
    calibrate_on: CalibrationBatches | None = None,
    spare: float = 1.0,
    judged: bool = True,
    progress: bool = True,
) -> Conversion:
    """Plans a network's ranks, or takes them as planned, and converts a copy of it.

    Args:
        network, wanted, config, calibrate_on: as for `plan_network`.
        spare: times the planned ranks to convert at, >= 1; above 1 fine-tuning can choose which to drop.
        judged: ask the held-out images, which takes a while where they do not agree.
        progress: show a bar.

    Raises:
        OptionError: the network is compressed already, or options that do not go together.
        ConverterError: the network cannot be planned or converted so.
    """
    steps, device = config.polish, config.device
    if steps and calibrate_on is None:
        raise OptionError(f"--polish {steps} needs images; give it calibration images, or leave it out")
    planned = plan_network(network, wanted, config, calibrate_on=calibrate_on)
    start = planned.plan if spare == 1 else headroom(planned.plan, spare, rank_multiple=config.rank_multiple)
    dense = network.model.to(device)
    calibration, polished = planned.calibration, None
    images = 0 if calibration is None else len(calibration.images)
    if steps and images < _FEWEST_TO_POLISH:
        raise OptionError(
            f"--polish {steps} needs {_FEWEST_TO_POLISH} calibration images, there are {images}; "
            "give it more, or leave it out"
        )
    if calibration is None or steps == 0 or images < _FEWEST_TO_POLISH or not start.factored:
        converted = convert(dense, start, calibration=calibration)
    else:
        seen = replace(calibration, images=hold_out(calibration.images)[0])  # the others judge
        converted = convert(dense, start, calibration=seen)
        polished = _polish(converted, dense, planned, config, progress=progress)
    verdict = judge(dense, converted, planned, wanted, polished) if judged else None
    network.model.cpu()
    return Conversion(planned.plan, converted.cpu(), planned.calibration, planned.held_out, verdict, polished)


def _polish(
    converted: nn.Module, dense: nn.Module, planned: Planned, config: ConversionConfig, *, progress: bool
) -> Polished:
    """Polishes in place."""
    assert planned.calibration is not None
    assert planned.held_out is not None
    images, judges = hold_out(planned.calibration.images)
    steps = usual_steps(dense, images) if config.polish is None else config.polish
    start = agreement(converted, dense, planned.held_out)
    with polish_bar(steps, enabled=progress) as show:
        how = PolishConfig(steps=steps, seed=config.seed)
        return Polished(start, polish(converted, dense, images, how, held_out=judges, on_step=show))


def plan_network(
    network: Network,
    wanted: Policy | Plan,
    config: ConversionConfig,
    *,
    calibrate_on: CalibrationBatches | None = None,
) -> Planned:
    """Plans a network's ranks, or takes them as planned.

    Args:
        network: dense; untouched.
        wanted: a budget, a rule for ranks, or a finished plan.
        config: how.
        calibrate_on: images to plan and to fit the factors on.

    Raises:
        OptionError: the network is compressed already, or options that do not go together.
        ConverterError: the network cannot be planned so.
    """
    if network.compressed:
        raise OptionError("MODEL is compressed already; start from the dense network, or go on with dprp finetune")
    forms, device = config.forms, config.device
    model = network.model.to(device)  # in place: back to the CPU below
    layers = survey(model, network.example().to(device or torch.device("cpu")))
    calibration = held = replan = None
    if calibrate_on is not None:
        images, held = split_calibration(calibrate_on, config.images)
        calibration = calibrate(model, layers, images, images=len(images))
    if isinstance(wanted, Plan):
        if forms or config.keep:
            raise OptionError("--plan says forms and dense layers itself; leave --form and --keep out")
        plan = wanted
        _check_plan(plan, layers)
    else:
        energies = None if calibration is None else calibration.energies
        losses = times = None
        if isinstance(wanted, LatencyBudget):
            times = time_layers(
                network, layers, rank_multiple=config.rank_multiple, forms=forms, threads=config.threads
            )
            model = network.model.to(device)
        if calibration is not None and isinstance(wanted, (MacBudget, ParamBudget, LatencyBudget)):
            losses = foretell(model, layers, calibration)
            energies = losses.errors
        to_plan = partial(
            plan_ranks,
            layers,
            forms=forms or tuple(Form),
            keep=config.keep,
            rank_multiple=config.rank_multiple,
            energies=energies,
            times=times,
        )
        if calibration is None or losses is None:
            plan, replan = to_plan(wanted), to_plan
        elif config.sensitivity is Sensitivity.BEST:
            trials = usual_trials(layers.macs, len(calibration.images))
            plan, distortions = best_plan(
                model, losses, calibration, lambda way: to_plan(wanted, distortions=way), trials=trials
            )
            replan = partial(to_plan, distortions=distortions)
        else:
            replan = partial(to_plan, distortions=losses.distortions(config.sensitivity))
            plan = replan(wanted)
    network.model.cpu()
    return Planned(plan, calibration, held if held is not None and len(held) else None, replan)


def _check_plan(plan: Plan, layers: Survey) -> None:
    """A plan that was edited by hand may ask for more than the planner ever would."""
    if plan.input_shape != layers.input_shape:
        raise OptionError(
            f"the plan is for inputs of {_text(plan.input_shape)}, the model's are {_text(layers.input_shape)}; "
            f"make the plan anew, or pass --input {_text(plan.input_shape)}"
        )
    reasons = {layer.name: layer.reason for layer in layers}
    for name in plan.factored:
        if reasons.get(name) is not None:
            raise OptionError(
                f"{name}: cannot be factored as the plan asks ({reasons[name]}); set form and rank to null"
            )


def read_plan(path: Path | str) -> Plan:
    """Reads a plan from a file.

    Raises:
        OptionError: no such file, or not a plan.
    """
    path = Path(path)
    check_input(path, error=OptionError, largest=_LARGEST_PLAN, what="a plan that dprp plan or convert wrote")
    with reading(path, error=OptionError):
        text = path.read_text(encoding="utf-8")
    try:
        return Plan.from_json(text)
    except PlanError as error:
        raise OptionError(f"{path}: {error}") from error


def forms_from(names: Sequence[str]) -> tuple[Form, ...]:
    """Forms by their names.

    Raises:
        OptionError: an unknown name.
    """
    allowed = [form.value for form in BASE_FORMS]
    for name in names:
        if name not in allowed:
            raise OptionError(f"form {name!r} is not one of {', '.join(allowed)}; choose one of these")
    return tuple(Form(name) for name in names)


def sensitivity_from(name: str) -> Sensitivity:
    """A sensitivity by its name.

    Raises:
        OptionError: an unknown name.
    """
    try:
        return Sensitivity(name)
    except ValueError:
        allowed = ", ".join(kind.value for kind in Sensitivity)
        raise OptionError(f"sensitivity {name!r} is not one of {allowed}; choose one of these") from None


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
