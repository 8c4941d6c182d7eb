"""Whether a changed network still answers as it did before, on real inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..analysis.inputs import Samples
from ..analysis.probe import evaluating
from ..analysis.running import copied, run, same_noise, tensors_in
from ..errors import ConverterError

_TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference of outputs, relative to their largest value."""


class Trial:
    """A network's answers to some inputs, to compare those of changed copies with.

    The network runs in float64 where it can: rounding then hides no mistake, and is taken for none. A network that
    makes tensors of a type of its own runs as it is.

    Args:
        model: in eval mode; untouched.
        inputs: each an input of the network.

    Attributes:
        reference: the copy that gave the answers. Others are comparable when they are of its type.

    Raises:
        ModelError: the model cannot take an input.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Samples]) -> None:
        doubled = [example.double() if example.is_floating_point() else example for example in inputs]
        self.reference = copied(model).double()
        self.exact = True
        self._inputs: Sequence[Samples] = doubled
        try:
            self._wanted = _answers(self.reference, doubled)
        except ConverterError:
            self.reference, self.exact, self._inputs = copied(model), False, inputs
            self._wanted = _answers(self.reference, inputs)

    @property
    def proves(self) -> bool:
        """Whether there is anything to compare."""
        return any(self._wanted)

    def difference(self, model: nn.Module, rounded: torch.dtype | None = None) -> str | None:
        """What is wrong with a model's answers, or None.

        Args:
            model: of the type of `reference`.
            rounded: type that its weights were once rounded to.
        """
        try:
            answers = _answers(model, self._inputs)
        except ConverterError as error:
            return str(error)
        for ours, theirs in zip(answers, self._wanted, strict=True):
            if [tensor.shape for tensor in ours] != [tensor.shape for tensor in theirs]:
                return "the outputs would have other shapes"
            for one, other in zip(ours, theirs, strict=True):
                finite = other[other.isfinite()].double().abs()
                tolerance = max(_TOLERANCE.get(other.dtype, 0.0), _TOLERANCE[rounded] if rounded else 0.0)
                limit = tolerance * float(finite.max()) if len(finite) else 0.0
                if not torch.allclose(one, other, rtol=0.0, atol=limit, equal_nan=True):
                    off = float((one.double() - other.double()).abs().nan_to_num(0.0).max())
                    return f"the outputs would change by {off:.2g} where {limit:.2g} is allowed"
        return None


def _answers(model: nn.Module, inputs: Sequence[Samples]) -> list[list[Tensor]]:
    answers = []
    with evaluating(model), torch.no_grad():
        for example in inputs:
            with same_noise():
                answers.append([tensor.clone() for tensor in tensors_in(run(model, example))])
    return answers
