"""Where a compressed network came from: how to build the plain one, what it eats, and what its outputs mean."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass

from ..json_values import number, printable, sequence, whole

_MOST_CLASSES = 2**20
_LARGEST_SIDE = 2**20
_MOST_SIDES = 4
_MOST_VALUES = 2**28
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Source:
    """How to build the plain network, what it eats, and what its outputs mean.

    Attributes:
        model: a name that the builder knows, or `package.module:function`.
        classes: number of outputs, None for the model's own.
        input_shape: (C, H, W) of an image; from (C,) to (C, D, H, W) of what else a network eats.
        mean, std: per channel, of inputs scaled to 0..1; empty where nobody said.
        labels: names of the outputs in their order; empty where nobody said.
        sha256: of the file that the plain network's weights came from; None for other weights.
    """

    model: str
    classes: int | None
    input_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: tuple[str, ...] = ()
    sha256: str | None = None

    def to_json(self) -> str:
        """As it stands in the file."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Source:
        """Reads what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: something is missing, of another kind, or out of bounds.
        """
        values = json.loads(text)
        sides = sequence(values["input_shape"], "input_shape", _MOST_SIDES)
        labels = sequence(values.get("labels", ()), "labels", _MOST_CLASSES)
        source = cls(
            printable(values["model"], "model"),
            None if values["classes"] is None else whole(values["classes"], "classes", 1, _MOST_CLASSES),
            tuple(whole(side, "input_shape", 1, _LARGEST_SIDE) for side in sides),
            tuple(number(value, "mean") for value in sequence(values["mean"], "mean", _LARGEST_SIDE)),
            tuple(number(value, "std", above=0) for value in sequence(values["std"], "std", _LARGEST_SIDE)),
            tuple(printable(name, "a label") for name in labels),
            _sha256(values.get("sha256")),
        )
        if not source.input_shape or math.prod(source.input_shape) > _MOST_VALUES:
            raise ValueError(
                f"input_shape is {sides}; one to {_MOST_SIDES} sizes and at most {_MOST_VALUES:,} values belong there"
            )
        if not len(source.mean) == len(source.std) or len(source.mean) not in (0, source.input_shape[0]):
            raise ValueError(
                f"there are {len(source.mean)} means and {len(source.std)} stds for {source.input_shape[0]} channels"
            )
        return source


def _sha256(value: object) -> str | None:
    if value is not None and not _DIGEST.fullmatch(printable(value, "sha256")):
        raise ValueError(f"sha256 is {str(value)[:80]}; 64 hexadecimal digits belong there")
    return value  # type: ignore[return-value]
