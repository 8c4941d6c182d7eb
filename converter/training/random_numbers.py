"""Random numbers of torch, numpy and Python: kept, put back, and seeded for a while.

Of numpy the old global generator, which transforms draw from: whoever has a generator of his own looks after it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Where all generators of this process stand, as numbers and tensors."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if _on_gpus() else [],
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "python": random.getstate(),
    }


def put_random_state(state: dict[str, Any]) -> None:
    """Puts all generators where they stood; those of GPUs only where there are as many."""
    torch.set_rng_state(state["torch"])
    if _on_gpus() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(state["python"])


@contextmanager
def random_numbers(*seed: int) -> Iterator[None]:
    """All generators start from these numbers in the block, and stand where they stood after it."""
    before = random_state()
    digest = hashlib.sha256(repr(seed).encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little"))
    np.random.seed(int.from_bytes(digest[8:12], "little"))  # noqa: NPY002
    random.seed(digest)
    try:
        yield
    finally:
        put_random_state(before)


def _on_gpus() -> bool:
    """Whether GPUs are in use: asking their generators would else start them."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call, unused-ignore]
