"""`dprp finetune`: train a compressed checkpoint while its ranks shrink."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ...models import load_weights
from ..analysis.accuracy import Accuracy
from ..conversion.attached import plan_of
from ..planning.plan import Plan
from ..planning.policies import Budget, LatencyBudget, parse_budget
from ..storage.checkpoint import save_compressed
from ..storage.source import Source
from ..training.config import FinetuneConfig, OptimizerKind, Step
from ..training.finetuning import finetune as train_low_rank
from .console import note, silent
from .convert import check_compressed_target
from .data import Batches, data_file, open_data
from .device import pick_device
from .errors import CliError
from .network import build_plain, open_network
from .totals import costs, ranks


@dataclass(frozen=True)
class Finetuned:
    """What `finetune` did.

    Attributes:
        before, after: the plans.
        accuracy: on the test images.
        epochs: loss, top-1 and part of the MACs after each.
        output: the compressed checkpoint.
    """

    before: Plan
    after: Plan
    accuracy: Accuracy
    epochs: tuple[Step, ...]
    output: Path

    def __str__(self) -> str:
        return f"{self.after}\n{self.accuracy}\nwrote {self.output}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "output": str(self.output),
            "top1": self.accuracy.top1,
            "images": self.accuracy.images,
            **costs(self.after),
            "layers": ranks(self.after),
            "layers_before": ranks(self.before),
            "epochs": [
                {"epoch": step.epoch, "loss": step.loss, "top1": step.top1, "macs": step.macs} for step in self.epochs
            ],
        }


def finetune(
    file: Path | str,
    *,
    data: str,
    epochs: int,
    output: Path | str,
    budget: str | None = None,
    threshold: float | None = None,
    teacher: Path | str | None = None,
    batch_size: int = 128,
    learning_rate: float = 0.005,
    optimizer: str = "sgd",
    weight_decay: float = 1e-4,
    distill: float = 0.7,
    orthogonality: float = 1e-2,
    rank_loss: float = 1e-3,
    prune_until: float = 0.5,
    rank_multiple: int = 8,
    mixed_precision: str = "no",
    augment: str | None = None,
    workers: int = 0,
    download: bool = False,
    trust: str | None = None,
    force: bool = False,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = False,
) -> Finetuned:
    """Trains a compressed checkpoint and writes another one.

    Args:
        file: a compressed `.safetensors`.
        data: as `dprp.models.load_data` takes it.
        epochs: passes over the training images, >= 1.
        output: the trained checkpoint, a `.safetensors`.
        budget: where the ranks shall land, such as "macs=0.4"; None leaves them.
        threshold: instead of a budget: drop singular values below this part of a layer's largest.
        teacher: checkpoint of the dense network, for distillation.
        batch_size: images in a batch.
        learning_rate, optimizer, weight_decay, distill, orthogonality, prune_until, rank_multiple,
            mixed_precision: as in `FinetuneConfig`.
        rank_loss: lambda_r, the weight of the rank loss.
        augment: none, crop or crop-flip; None for what suits the data.
        workers: processes that read images ahead.
        download: let torchvision fetch its data set.
        trust: `package.module:function` that the file may be built by.
        force: write over an existing file.
        seed: of shuffling and augmentation.
        device: auto, cpu or cuda.
        quiet: show neither notes nor a progress bar.

    Raises:
        CliError, ConverterError, ModelsError: one sentence each; nothing has been written then.
    """
    where = pick_device(device)
    if optimizer not in [kind.value for kind in OptimizerKind]:
        raise CliError(f"optimizer {optimizer!r} is not one of {', '.join(OptimizerKind)}; choose one of these")
    config = FinetuneConfig(
        epochs=epochs,
        budget=_trainable(budget),
        threshold=threshold,
        learning_rate=learning_rate,
        optimizer=OptimizerKind(optimizer),
        weight_decay=weight_decay,
        distill=distill,
        orthogonality=orthogonality,
        rank=rank_loss,
        prune_until=prune_until,
        rank_multiple=rank_multiple,
        mixed_precision=mixed_precision,
        seed=seed,
        cpu=where.type == "cpu",
    )
    target = check_compressed_target(output, inputs=(file, teacher, data_file(data)), force=force)
    if Path(file).suffix.lower() != ".safetensors":
        raise CliError(f"{file}: is not a compressed .safetensors; make one with dprp convert first")
    network = open_network(str(file), trust=trust)
    dense = None if teacher is None else _teacher(network.source, teacher)
    images = open_data(data, network.classes(), download=download)
    batches = Batches(images, network.preprocess, batch_size, seed, workers)
    train, test = batches.train(augment), batches.test()
    say = silent if quiet else note
    say(f"fine-tuning {file} on {data} for {epochs} epochs")
    steps: list[Step] = []

    def keep_epochs(step: Step) -> None:
        if step.top1 is not None:
            steps.append(step)

    tuned = train_low_rank(
        network.model, train, config, evaluate_on=test, teacher=dense, on_step=keep_epochs, progress=not quiet
    )
    save_compressed(tuned, network.source, target, force=force)
    # The last epoch ends with an evaluation of what was saved.
    accuracy = Accuracy(steps[-1].top1 or 0.0, len(images.test(network.preprocess)))  # type: ignore[arg-type]
    return Finetuned(plan_of(network.model), plan_of(tuned), accuracy, tuple(steps), target)


def _teacher(source: Source, checkpoint: Path | str) -> nn.Module:
    dense = build_plain(source)
    load_weights(dense, checkpoint)
    return dense


def _trainable(budget: str | None) -> Budget | None:
    if budget is None:
        return None
    parsed = parse_budget(budget)
    if isinstance(parsed, LatencyBudget):
        raise CliError(
            f"budget {budget}: ranks are not cut by latency in training; convert to it first and leave --budget out"
        )
    return parsed
