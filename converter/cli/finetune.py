"""`dprp finetune`: train a compressed checkpoint while its ranks shrink."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ...models import load_weights
from ..analysis.accuracy import Accuracy
from ..chain.data import Batches, data_file, open_data
from ..chain.device import pick_device
from ..chain.gain import Gain, gain_of
from ..chain.network import build_plain, open_network
from ..chain.targets import check_compressed_target
from ..chain.totals import costs, ranks
from ..conversion.attached import plan_of
from ..errors import OptionError
from ..planning.plan import Plan
from ..planning.policies import Budget, LatencyBudget, parse_budget
from ..storage.checkpoint import save_compressed
from ..storage.source import Source
from ..training.config import FinetuneConfig, OptimizerKind, RankPenalty
from ..training.loop import finetune as train_low_rank
from ..training.record import Step
from .asked import asked_mix, asked_run, told_how_to_go_on
from .console import is_first, note
from .verbs import FinetuneOptions


@dataclass(frozen=True)
class Finetuned:
    """What `finetune` did.

    Attributes:
        before, after: the plans.
        accuracy: on the test images.
        gain: what training was worth; None where ranks fell on the way.
        epochs: loss, top-1 and part of the MACs after each.
        output: the compressed checkpoint.
    """

    before: Plan
    after: Plan
    accuracy: Accuracy
    gain: Gain | None
    epochs: tuple[Step, ...]
    output: Path

    def __str__(self) -> str:
        gained = [] if self.gain is None else [str(self.gain)]
        return "\n".join([str(self.after), str(self.accuracy), *gained, f"wrote {self.output}"])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "output": str(self.output),
            "top1": self.accuracy.top1,
            "top1_before": None if self.gain is None else self.gain.before,
            "images": self.accuracy.images,
            **costs(self.after),
            "layers": ranks(self.after),
            "layers_before": ranks(self.before),
            "epochs": [
                {"epoch": step.epoch, "loss": step.loss, "top1": step.score, "macs": step.macs}
                for step in self.epochs
            ],
        }


def finetune(asked: FinetuneOptions) -> Finetuned:
    """Trains a compressed checkpoint and writes another one; of several processes, the first does all that is seen.

    Raises:
        ConverterError, ModelsError: one sentence each; nothing has been written then.
    """
    where = pick_device(asked.device)
    config = FinetuneConfig(
        epochs=asked.epochs,
        budget=_trainable(asked.budget),
        threshold=asked.threshold,
        learning_rate=asked.learning_rate,
        optimizer=OptimizerKind(asked.optimizer),
        weight_decay=asked.weight_decay,
        distill=asked.distill,
        orthogonality=asked.orthogonality,
        rank=asked.rank_loss,
        rank_penalty=RankPenalty(asked.rank_penalty),
        matching=asked.matching,
        prune_until=asked.prune_until,
        cuts=asked.cuts,
        accumulate=asked.accumulate,
        average=asked.average,
        rank_multiple=asked.rank_multiple,
        mixed_precision=asked.mixed_precision,
        seed=asked.seed,
        cpu=where.type == "cpu",
    )
    file, data = asked.file, asked.data
    target = check_compressed_target(asked.output, inputs=(file, asked.teacher, data_file(data)), force=asked.force)
    folder = asked_run("finetune", asked) if is_first() else None
    if file.suffix.lower() != ".safetensors":
        raise OptionError(f"{file}: is not a compressed .safetensors; make one with dprp convert first")
    network = open_network(str(file), trust=asked.trust)
    teacher = None if asked.teacher is None else _teacher(network.source, asked.teacher)
    classes = network.classes()
    images = open_data(data, classes, download=asked.download)
    batches = Batches(images, network.preprocess, asked.batch_size, asked.seed, asked.workers)
    mix = asked_mix(asked, taught=teacher is not None)
    train, test = batches.train(asked.augment, mix, classes), batches.test()
    if not asked.quiet:
        note(f"fine-tuning {file} on {data} for {asked.epochs} epochs")
    steps: list[Step] = []

    def keep_epochs(step: Step) -> None:
        if step.score is not None:
            steps.append(step)

    with told_how_to_go_on("finetune", folder):
        tuned = train_low_rank(
            network.model,
            train,
            config,
            evaluate_on=test,
            teacher=teacher,
            folder=folder,
            on_step=keep_epochs,
            progress=not asked.quiet,
        )
    if is_first():
        save_compressed(tuned, network.source, target, force=asked.force)
    if folder is not None:
        # Those of before an interruption, too; a disk that was full has none.
        steps = [step for step in folder.history() if step.score is not None] or steps
        folder.finish()
    # The last epoch ends with an evaluation of what was saved.
    accuracy = Accuracy(steps[-1].score or 0.0, len(images.test(network.preprocess)))  # type: ignore[arg-type]
    return Finetuned(plan_of(network.model), plan_of(tuned), accuracy, gain_of(steps), tuple(steps), target)


def _teacher(source: Source, checkpoint: Path | str) -> nn.Module:
    dense = build_plain(source)
    load_weights(dense, checkpoint)
    return dense


def _trainable(budget: str | None) -> Budget | None:
    if budget is None:
        return None
    parsed = parse_budget(budget)
    if isinstance(parsed, LatencyBudget):
        raise OptionError(
            f"budget {budget}: ranks are not cut by latency in training; convert to it first and leave --budget out"
        )
    return parsed
