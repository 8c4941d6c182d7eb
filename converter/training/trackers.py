"""TensorBoard and Weights & Biases, by way of Accelerate."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available, is_wandb_available

from ..errors import TrainingError
from .record import Step

TRACKERS = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
_PROJECT = "dprp"


def check_tracker(name: str | None) -> None:
    """Refuses a tracker that is not there.

    Raises:
        TrainingError: it is none of those known, or not installed.
    """
    if name is None:
        return
    if name not in TRACKERS:
        raise TrainingError(f"log {name!r} is not one of {', '.join(TRACKERS)}; choose one of these")
    if not TRACKERS[name]():
        raise TrainingError(f"log {name} needs the package {name}, which is not installed; pip install {name}")


@contextmanager
def tracked(accelerator: Accelerator, about: Mapping[str, Any]) -> Iterator[None]:
    """Starts the trackers of an Accelerator, if it has any, and ends them.

    Args:
        accelerator: of the run.
        about: its settings.
    """
    if accelerator.log_with:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other people's packages
            accelerator.init_trackers(_PROJECT, {name: value for name, value in about.items() if value is not None})
    try:
        yield
    finally:
        if accelerator.log_with:
            for tracker in accelerator.trackers:
                tracker.finish()


def track(accelerator: Accelerator, step: Step) -> None:
    """Tells the trackers of a step: losses by part, the metric, costs, and the ranks that a cut changed."""
    if not accelerator.log_with:
        return
    told = {name: value for name, value in step.to_dict().items() if isinstance(value, (int, float))}
    told |= {f"rank/{name}": rank for name, rank in (step.cut.after if step.cut else {}).items()}
    if step.cut is not None and step.cut.jump is not None and math.isfinite(step.cut.jump):
        told["jump"] = step.cut.jump
    accelerator.log({name: value for name, value in told.items() if name not in ("step", "steps")}, step=step.step)
