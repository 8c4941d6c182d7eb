"""Fine-tuning with dynamic rank pruning: train the factors, drop ranks on the way, land on the budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from enum import Enum

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn import functional as F

from .calibrate import Moments
from .convert import low_rank_layers, plan_of, relabel
from .costs import Unit, factored_cost
from .errors import TrainingError
from .evaluate import Batches, evaluate
from .layers import LowRank
from .losses import RankPenalty, distillation, orthogonality, rank_penalty
from .policies import Budget
from .progress import FinetuneBar
from .prune import Cut, RankPruner, scheduled
from .running import copied, run, scores_in


class OptimizerKind(str, Enum):
    """Which optimizer trains the factors."""

    SGD = "sgd"
    ADAMW = "adamw"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class FinetuneConfig:
    """How to fine-tune. The defaults are those of the results in docs/RESULTS.md.

    Attributes:
        epochs: passes over the training data, >= 1.
        budget: where the ranks shall land; None leaves them, unless there is a threshold.
        threshold: the mode without a budget: drop directions below this part of a layer's largest singular value.
        learning_rate: peak of the one-cycle schedule.
        optimizer: SGD with momentum, or AdamW.
        momentum: of SGD.
        weight_decay: on u, v and other weights; not on s, biases and normalisation.
        warmup: part of the steps in which the rate rises.
        label_smoothing: of the cross-entropy.
        orthogonality: lambda_o.
        rank: lambda_r; acts while ranks are being pruned.
        rank_penalty: R.
        distill: weight of the teacher's part of the task loss, 0..1; 0 when no teacher is given.
        temperature: of the distillation.
        prune_until: part of the steps after which the budget is met.
        prune_every: steps between two cuts.
        rank_multiple: ranks are cut to multiples of this.
        clip: largest gradient norm; 0 for none.
        mixed_precision: "no", "bf16" or "fp16".
        channels_last: memory layout of a network of images; much faster on CPUs and on tensor cores.
        seed: of the random numbers.
        cpu: stay on the CPU even where there is a GPU.
    """

    epochs: int = 3
    budget: Budget | None = None
    threshold: float | None = None
    learning_rate: float = 0.005
    optimizer: OptimizerKind = OptimizerKind.SGD
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: float = 0.1
    label_smoothing: float = 0.0
    orthogonality: float = 1e-2
    rank: float = 1e-3
    rank_penalty: RankPenalty = RankPenalty.HOYER
    distill: float = 0.7
    temperature: float = 4.0
    prune_until: float = 0.5
    prune_every: int = 20
    rank_multiple: int = 8
    clip: float = 5.0
    mixed_precision: str = "no"
    channels_last: bool = True
    seed: int = 0
    cpu: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise TrainingError(f"epochs {self.epochs} is below 1; give at least one")
        if self.budget is not None and self.threshold is not None:
            raise TrainingError("a budget and a threshold are two ways to end up somewhere; give one of them")
        if self.threshold is not None and not 0.0 < self.threshold < 1.0:
            raise TrainingError(f"threshold {self.threshold:g} is not in (0, 1); try 0.05")
        if not 0.0 < self.learning_rate < math.inf:
            raise TrainingError(f"learning rate {self.learning_rate:g} is not above 0; try 0.005")
        for name, value in (("prune_until", self.prune_until), ("distill", self.distill)):
            if not 0.0 <= value <= 1.0:
                raise TrainingError(f"{name} {value:g} is not in 0..1; give a part of the whole")


@dataclass(frozen=True)
class Step:
    """What one training step was, for a progress bar or a record.

    Attributes:
        step, steps: this one (from 1), and all.
        epoch: from 1.
        loss, task, orthogonality, rank: the whole loss and its unweighted parts.
        learning_rate: used in this step.
        macs, params: parts of the dense network's cost now.
        top1: percent on the evaluation data, after an epoch's last step.
        cut: the ranks that this step's cut changed.
    """

    step: int
    steps: int
    epoch: int
    loss: float
    task: float
    orthogonality: float
    rank: float
    learning_rate: float
    macs: float
    params: float
    top1: float | None = None
    cut: Cut | None = None


def finetune(
    model: nn.Module,
    train: Batches,
    config: FinetuneConfig | None = None,
    *,
    evaluate_on: Batches | None = None,
    teacher: nn.Module | None = None,
    moments: Moments | None = None,
    on_step: Callable[[Step], None] | None = None,
    progress: bool = True,
) -> nn.Module:
    """Trains a converted network while its ranks shrink to the budget.

    Args:
        model: what `convert` gave; untouched.
        train: images (N, C, H, W) and labels (N,), with a length; usually a DataLoader.
        config: how.
        evaluate_on: images and labels for the top-1 after each epoch.
        teacher: the dense network, for distillation.
        moments: second moments of the layers' inputs; cuts then lose the least of the outputs.
        on_step: is told of every step.
        progress: show a progress bar.

    Returns:
        A trained copy in eval mode, on the CPU. Under a budget it costs at most the budget.

    Raises:
        TrainingError: nothing to train, or a loss that is not finite.
        ModelError: the network cannot take the images.
        BudgetError: the budget cannot be reached by cutting ranks.
    """
    config = config or FinetuneConfig()
    plan = plan_of(model)
    if not isinstance(train, Sized) or len(train) == 0:
        raise TrainingError("the training data has no batches or no length; give a DataLoader with images")
    torch.manual_seed(config.seed)
    AcceleratorState._reset_state()  # a second run in one process may want another precision
    accelerator = Accelerator(cpu=config.cpu, mixed_precision=config.mixed_precision)
    student = copied(model)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    optimizer = _optimizer(student, config)
    pruner = RankPruner(
        student, plan, optimizer, rank_multiple=config.rank_multiple, moments=_on(moments, accelerator.device)
    )
    if config.budget is not None:
        pruner.check(config.budget)
    wrapped, prepared, loader = accelerator.prepare(student, optimizer, train)
    if teacher is not None and config.distill > 0:
        teacher = copied(teacher).to(accelerator.device).eval().requires_grad_(False)
    steps = config.epochs * len(train)
    prune_steps = max(1, int(config.prune_until * steps))
    start = {unit: plan.fraction(unit) for unit in Unit}
    pressure = _rank_weights(pruner.layers)
    pruning = (config.budget or config.threshold) is not None
    normalised = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in student.modules())
    with FinetuneBar(config.epochs, steps, enabled=progress and accelerator.is_main_process) as bar:
        step = 0
        for epoch in range(1, config.epochs + 1):
            wrapped.train()
            for images, labels, last in _batches(loader, normalised):
                step += 1
                if last and epoch == 1:  # the loader may give fewer batches than its length says
                    steps = config.epochs * step
                    prune_steps = max(1, int(config.prune_until * steps))
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate * _one_cycle(min(1.0, (step - 1) / steps), config.warmup)
                images, labels = images.to(accelerator.device), labels.to(accelerator.device)
                if images.dim() == 4:
                    images = images.contiguous(memory_format=layout)
                outputs = scores_in(run(wrapped, images))
                task = _task_loss(outputs, images, labels, teacher, config)
                upright = orthogonality(pruner.layers.values())
                press = rank_penalty(pruner.layers, pressure, config.rank_penalty)
                loss = task + config.orthogonality * upright + (config.rank if pruning else 0.0) * press
                if not bool(loss.isfinite()):
                    raise TrainingError(
                        f"the loss is {loss.item()} at step {step}; lower the learning rate "
                        f"(now {config.learning_rate:g}) or check the data"
                    )
                accelerator.backward(loss)
                if config.clip:
                    accelerator.clip_grad_norm_(student.parameters(), config.clip)
                prepared.step()
                prepared.zero_grad(set_to_none=True)
                cut = None
                final = last and epoch == config.epochs
                if pruning and (step % config.prune_every == 0 or step >= prune_steps or final):
                    done = 1.0 if final else step / prune_steps
                    cut = _cut(pruner, config, start, done)
                    pruning = done < 1.0
                top1 = evaluate(student, evaluate_on).top1 if last and evaluate_on is not None else None
                now = plan_of(student)
                event = Step(
                    step,
                    steps,
                    epoch,
                    loss.item(),
                    task.item(),
                    upright.item(),
                    press.item(),
                    optimizer.param_groups[0]["lr"],
                    now.fraction(Unit.MACS),
                    now.fraction(Unit.PARAMS),
                    top1,
                    cut,
                )
                bar.show(event)
                if on_step is not None:
                    on_step(event)
    if step == 0:
        raise TrainingError("the training data gave no batch of two images or more; give it more images")
    if pruning:  # the last epochs gave no batch
        _cut(pruner, config, start, 1.0)
    trained: nn.Module = accelerator.unwrap_model(wrapped)
    if config.budget is not None or config.threshold is not None:
        relabel(trained, f"threshold={config.threshold:g}" if config.budget is None else str(config.budget))
    return trained.cpu().eval()


def _batches(loader: Iterable[tuple[Tensor, Tensor]], normalised: bool) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Images, labels, and whether they are the last of the epoch.

    A single image that is left over after larger batches is dropped where there are BatchNorms: it has no variance.
    """
    waiting, largest = None, 0
    for images, labels in loader:
        if normalised and len(images) == 1 and largest > 1:
            continue
        if waiting is not None:
            yield *waiting, False
        waiting, largest = (images, labels), max(largest, len(images))
    if waiting is not None:
        yield *waiting, True


def _cut(pruner: RankPruner, config: FinetuneConfig, start: dict[Unit, float], done: float) -> Cut:
    if config.threshold is not None:
        return pruner.below_threshold(config.threshold)
    assert config.budget is not None
    unit, target = config.budget.unit, config.budget.fraction
    return pruner.to_limit(max(target, scheduled(start[unit], target, done)), unit)


def _task_loss(
    outputs: Tensor, images: Tensor, labels: Tensor, teacher: nn.Module | None, config: FinetuneConfig
) -> Tensor:
    hard = F.cross_entropy(outputs.float(), labels, label_smoothing=config.label_smoothing)
    if teacher is None or config.distill == 0:
        return hard
    with torch.no_grad():
        wanted = scores_in(run(teacher, images))
    return (1 - config.distill) * hard + config.distill * distillation(outputs, wanted, config.temperature)


def _rank_weights(layers: dict[str, LowRank]) -> dict[str, float]:
    """w_l: each layer's MACs per rank, normalised to a mean of 1."""
    costs = {
        name: factored_cost(layer.shape, layer.form, 1, Unit.MACS)
        - factored_cost(layer.shape, layer.form, 0, Unit.MACS)
        for name, layer in layers.items()
    }
    mean = sum(costs.values()) / max(1, len(costs)) or 1.0
    return {name: cost / mean for name, cost in costs.items()}


def _optimizer(model: nn.Module, config: FinetuneConfig) -> torch.optim.Optimizer:
    scales = {id(layer.s) for layer in low_rank_layers(model).values()}
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (spared if parameter.dim() < 2 or id(parameter) in scales else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    if not decayed and not spared:
        raise TrainingError("no parameter of the model wants a gradient; unfreeze some (requires_grad_)")
    if config.optimizer is OptimizerKind.ADAMW:
        return torch.optim.AdamW(groups, lr=config.learning_rate)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0)


def _one_cycle(done: float, warmup: float) -> float:
    """Rises in a straight line, then falls as a cosine."""
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def _on(moments: Moments | None, device: torch.device) -> Moments | None:
    return None if moments is None else {key: moment.to(device) for key, moment in moments.items()}
