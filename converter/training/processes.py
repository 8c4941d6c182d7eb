"""Where a run computes, and in which precision; what was there before is there afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import distributed as dist

from ..errors import ConverterWarning, TrainingError
from .config import FinetuneConfig
from .random_numbers import random_numbers


@contextmanager
def own_accelerator(
    config: FinetuneConfig, *, log: str | None = None, logs: Path | None = None
) -> Iterator[Accelerator]:
    """An Accelerator for one run.

    Accelerate keeps one state for the whole process, precision and device included, and refuses another: a user's own
    is set aside, and so are all random numbers.

    Args:
        config: of the run.
        log: a tracker of Accelerate's.
        logs: where it may write.

    Raises:
        TrainingError: a precision that the device does not have.
    """
    kinds: tuple[Any, ...] = (AcceleratorState, PartialState, GradientState)
    joined = dist.is_available() and dist.is_initialized()
    before = [dict(kind._shared_state) for kind in kinds]
    try:
        for kind in kinds:
            kind._shared_state.clear()
        accelerator = Accelerator(
            cpu=config.cpu,
            mixed_precision=_precision(config),
            log_with=log,
            project_dir=None if logs is None else str(logs),
        )
        with random_numbers(config.seed, accelerator.process_index):
            yield accelerator
    finally:
        if not joined and dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
        for kind, state in zip(kinds, before, strict=True):
            kind._shared_state.clear()
            kind._shared_state.update(state)


def _precision(config: FinetuneConfig) -> str:
    on_cpu = config.cpu or not torch.cuda.is_available()
    if config.mixed_precision == "fp16" and on_cpu:
        raise TrainingError("mixed precision fp16 needs a GPU; take bf16, or no, on the CPU")
    if config.mixed_precision == "bf16" and on_cpu and not _computes_bf16():
        warnings.warn(
            "this CPU has no bf16 of its own, which makes training many times slower; leave mixed precision out",
            ConverterWarning,
            stacklevel=2,
        )
    return config.mixed_precision


def _computes_bf16() -> bool:
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask is not None and ask() for ask in asked)
