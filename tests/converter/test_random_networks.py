"""What must hold for every network, on some drawn at random."""

from __future__ import annotations

import pytest

from .random_networks import check


@pytest.mark.parametrize("seed", range(24))
def test_every_promise_is_kept(seed: int) -> None:
    check(seed, onnx=seed % 8 in (0, 5))
