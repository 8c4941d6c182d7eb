"""The verbs on the command line: what each takes.

`command` does the rest: the verb is a function of the same name in a module of that name, which takes these options.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from .commands import command
from .options.base import Options
from .options.data import DownloadOptions, ScoringDataOptions, TrainingDataOptions
from .options.integers import Int8Options, JudgeName, RangesName, TargetOptions
from .options.machine import MachineOptions, ThreadOptions
from .options.network import FileOptions, LabelOptions, ModelOptions, NetworkOptions, TrustOptions
from .options.output import FolderOptions, ForceOptions, OutputOptions, QuietOptions
from .options.ranks import (
    CalibrateOptions,
    NeededBudgetOptions,
    PlanningOptions,
    PruningOptions,
    RuleOptions,
)
from .options.training import FinetuningOptions, PolishOptions, RunOptions, TrainingOptions


@command
@dataclass(frozen=True, kw_only=True)
class CompressOptions(
    NetworkOptions,
    LabelOptions,
    FolderOptions,
    TrainingDataOptions,
    NeededBudgetOptions,
    PlanningOptions,
    PolishOptions,
    TrainingOptions,
    RunOptions,
    Int8Options,
    ThreadOptions,
    MachineOptions,
    QuietOptions,
):
    """All of it: plan, convert, fine-tune, fuse, export, verify and time, into one folder."""


@command
@dataclass(frozen=True, kw_only=True)
class DemoOptions(MachineOptions, QuietOptions):
    """Compress a small CNN on scikit-learn's digits, in a minute.

    Attributes:
        output: Folder to write.
    """

    output: Annotated[Path, Option("--output", "-o")] = Path("dprp-demo")


@command
@dataclass(frozen=True, kw_only=True)
class SurveyOptions(ModelOptions, TrustOptions, MachineOptions):
    """List the layers: shapes, parameters, MACs, and how far each can be factored or why it stays."""


@command
@dataclass(frozen=True, kw_only=True)
class PlanOptions(
    NetworkOptions, RuleOptions, CalibrateOptions, ForceOptions, ThreadOptions, MachineOptions, DownloadOptions
):
    """Show what each layer would become, without converting anything.

    Attributes:
        output: File to write; none by default.
    """

    output: Annotated[Path | None, Option("--output", "-o")] = None


@command
@dataclass(frozen=True, kw_only=True)
class ConvertOptions(
    NetworkOptions,
    LabelOptions,
    OutputOptions,
    RuleOptions,
    CalibrateOptions,
    PolishOptions,
    ThreadOptions,
    MachineOptions,
    DownloadOptions,
    QuietOptions,
):
    """Factor a pretrained network; give one of --budget, --plan, --ratio, --rank and --energy.

    Attributes:
        plan: A plan, perhaps edited by hand.
        save_plan: Write the plan as JSON, too.
    """

    plan: Annotated[Path | None, Option("--plan", rich_help_panel="Ranks")] = None
    save_plan: Path | None = None


@command
@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(
    OutputOptions,
    TrainingDataOptions,
    PruningOptions,
    FinetuningOptions,
    RunOptions,
    TrustOptions,
    MachineOptions,
    QuietOptions,
):
    """Train a compressed checkpoint while its ranks shrink to a budget.

    Attributes:
        file: A compressed .safetensors.
    """

    file: Annotated[Path, Argument(metavar="FILE")]


@command
@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(FileOptions, ScoringDataOptions, MachineOptions, QuietOptions):
    """Count top-1 on the test images."""


@command
@dataclass(frozen=True, kw_only=True)
class ExportOptions(FileOptions, LabelOptions, OutputOptions, MachineOptions):
    """Fuse into plain layers and write one ONNX file, compared with torch before it is kept.

    Attributes:
        tolerance: Largest accepted difference from torch, relative to the output's scale; by default 0.0001, or 0.01.
        half: Weights and arithmetic in float16, for GPUs and NPUs; inputs and outputs stay float32.
        batch: Images in every run of the file, for compilers that want to know; any number by default.
    """

    tolerance: Annotated[float | None, Option(min=0.0)] = None
    half: Annotated[bool, Option("--half")] = False
    batch: Annotated[int | None, Option(min=1)] = None


@command
@dataclass(frozen=True, kw_only=True)
class QuantizeOptions(OutputOptions, ScoringDataOptions, TargetOptions, ThreadOptions, MachineOptions, QuietOptions):
    """Make an ONNX file of 8 bits from one of float32, and measure both.

    Attributes:
        file: A float32 ONNX file.
        images: Training images to find the ranges of activations on.
        ranges: How ranges are found.
        max_drop: Points of top-1 that may be lost on other training images; else the worst layers stay in float32.
        judge: What counts as right: the labels, or the answers of the float32 file where labels say nothing.
        float_node: A layer that stays in float32, such as "conv1/Conv"; may be given again.
    """

    file: Annotated[Path, Argument(metavar="FILE.onnx")]
    images: Annotated[int, Option(min=1)] = 256
    ranges: RangesName = "minmax"
    max_drop: Annotated[float | None, Option(min=0.0)] = None
    judge: JudgeName = "labels"
    float_node: Annotated[tuple[str, ...], Option(metavar="NODE")] = ()


@command
@dataclass(frozen=True, kw_only=True)
class VerifyOptions(FileOptions, MachineOptions, DownloadOptions, QuietOptions):
    """Compare an ONNX file with the network it came from, layer by layer; exit code 1 where they differ.

    Attributes:
        file: The ONNX file.
        data: Real images instead of noise, which files of 8 bits need: as for `evaluate`.
        tolerance: Largest accepted difference of outputs, relative to their scale; by default by the file's type.
        layer_tolerance: Largest accepted difference of a layer, relative to its norm; by default by the file's type.
    """

    file: Annotated[Path, Argument(metavar="FILE.onnx")]
    data: Annotated[str | None, Option(metavar="DATA")] = None
    tolerance: Annotated[float | None, Option(min=0.0)] = None
    layer_tolerance: Annotated[float | None, Option(min=0.0)] = None


@command
@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(ThreadOptions, MachineOptions):
    """Time ONNX files against each other on the CPU, in turns.

    Attributes:
        files: ONNX files; the first counts 1.
        batch: Images in a run.
        rounds: Turns of each file.
        seed: Changes nothing here: times do not depend on it.
    """

    files: Annotated[tuple[Path, ...], Argument(metavar="FILE...")]
    batch: Annotated[int, Option(min=1)] = 1
    rounds: Annotated[int, Option(min=1)] = 20


@command
@dataclass(frozen=True, kw_only=True)
class EnvOptions(Options):
    """Versions, processor and GPUs: what a bug report needs."""
