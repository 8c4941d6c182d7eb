"""Fine-tuning with dynamic rank pruning: train the factors, drop ranks on the way, land on the budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sized

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn import functional as F

from ..analysis.accuracy import Batches, evaluate
from ..analysis.calibration import Moments
from ..analysis.running import copied, run, scores_in
from ..conversion.attached import low_rank_layers, plan_of, relabel
from ..errors import TrainingError
from ..lowrank.costs import Unit, factored_cost
from ..lowrank.layers import LowRank
from .config import FinetuneConfig, OptimizerKind, Step
from .losses import distillation, orthogonality, rank_penalty
from .progress import FinetuneBar
from .prune import Cut, RankPruner, scheduled


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
