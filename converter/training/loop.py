"""Fine-tuning with dynamic rank pruning: train the factors, drop ranks on the way, land on the budget."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from torch import nn

from ..analysis.accuracy import Batches
from ..analysis.calibration import Moments
from ..conversion.attached import plan_of
from .batches import fingerprint
from .config import FinetuneConfig
from .interrupts import interrupts
from .metric import TOP1, Metric
from .objective import Loss
from .processes import own_accelerator
from .progress import FinetuneBar
from .record import Step
from .run import Run
from .run_folder import TRACKED, RunFolder
from .scores import Scores
from .together import Together
from .trackers import tracked


def finetune(
    model: nn.Module,
    train: Batches,
    config: FinetuneConfig | None = None,
    *,
    evaluate_on: Batches | None = None,
    teacher: nn.Module | None = None,
    moments: Moments | None = None,
    loss: Loss | None = None,
    metric: Metric = TOP1,
    folder: RunFolder | None = None,
    on_step: Callable[[Step], None] | None = None,
    progress: bool = True,
) -> nn.Module:
    """Trains a converted network while its ranks shrink to the budget.

    Args:
        model: what `convert` gave; untouched.
        train: pairs of inputs and targets, with a length; usually a DataLoader. For a classifier, images (N, C, H, W)
            and labels (N,).
        config: how.
        evaluate_on: pairs for the metric, after each epoch and, where ranks stay, before the first.
        teacher: the dense network, for distillation and matching.
        moments: second moments of the layers' inputs; cuts then lose the least of the outputs.
        loss: of outputs and targets, () floating point; cross-entropy of the first output by default.
        metric: top-1 by default.
        folder: keeps what is needed to go on after an interruption, and the record; begins or goes on as it was
            made. Ctrl-C and SIGTERM then wait for the end of the step, and save.
        on_step: is told of every step that this call makes.
        progress: show a progress bar.

    Returns:
        A trained float32 copy in eval mode, on the CPU. Under a budget it costs at most the budget. Frozen parameters
        and BatchNorms are as they were, and so are all random numbers and Accelerate's state. A step whose loss or
        gradient is not finite is left out; after several in a row the run goes back, and on at half the rate.

    Raises:
        TrainingError: nothing to train, a loss that stays infinite, a precision that the device does not have, or a
            folder of another run.
        ModelError: the network cannot take the inputs.
        BudgetError: the budget cannot be reached by cutting ranks.
    """
    config = config or FinetuneConfig()
    with ExitStack() as stack:
        log, logs = (None, None) if folder is None else (folder.log, folder.path / TRACKED)
        accelerator = stack.enter_context(own_accelerator(config, log=log, logs=logs))
        together = Together(accelerator)
        if folder is not None and folder.resumes:
            moments = folder.moments()
        scores = Scores(evaluate_on, metric, together)
        run = Run(model, train, config, accelerator, together, teacher, moments, loss, scores, folder)
        if folder is not None and together.first:
            about = {**config.told(), "processes": together.count, "data": fingerprint(train)}
            kept = moments if config.budget is not None else None  # nothing else weighs errors
            stack.enter_context(folder.opened(about, plan_of(model).to_json(), kept))
        stack.enter_context(tracked(accelerator, config.told()))
        stop = stack.enter_context(interrupts(wait=together.sent(folder is not None)))
        shown = FinetuneBar(config.epochs, metric.name, enabled=progress and accelerator.is_main_process)
        bar = stack.enter_context(shown)
        run.begin(resume=together.sent(folder is not None and folder.resumes))
        for step in run.steps(stop):
            bar.show(step)
            if on_step is not None:
                on_step(step)
        return run.result()
