"""A moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """Follows a network in training, and starts anew where ranks are cut: an average across a cut is of two networks.

    Args:
        model: the network.
        decay: part of the old average that a step leaves; 0 keeps the weights themselves.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model = model
        self._decay = decay
        self._steps = 0
        self._mean: dict[str, Tensor] = {}

    def restart(self) -> None:
        """Forgets what was before."""
        self._steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights and statistics as they are now."""
        if not self._decay:
            return
        # At first the plain mean: a young average would else be mostly its first weights.
        kept = min(self._decay, self._steps / (self._steps + 1))
        state = self._model.state_dict()
        if not self._steps:
            self._mean = {name: value.detach().clone() for name, value in state.items()}
        for name, mean in self._mean.items():
            if mean.is_floating_point():
                mean.lerp_(state[name], 1 - kept)
            else:
                mean.copy_(state[name])
        self._steps += 1

    def state(self) -> dict[str, Any]:
        """Where it is."""
        return {"steps": self._steps, "mean": self._mean if self._steps else {}}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a state of a network of the same shape, on whatever device."""
        self._steps = state["steps"]
        own = self._model.state_dict()
        self._mean = {name: mean.to(own[name], copy=True) for name, mean in state["mean"].items()}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network has the average inside, and its own weights afterwards."""
        own = (
            {name: value.detach().clone() for name, value in self._model.state_dict().items()} if self._steps else {}
        )
        self.settle()
        try:
            yield
        finally:
            if own:
                self._model.load_state_dict(own)

    def settle(self) -> None:
        """Puts the average in the network for good."""
        if self._decay and self._steps:
            self._model.load_state_dict(self._mean)
