"""How an image becomes a network's input."""

import math
from dataclasses import dataclass

from .errors import DataError
from .registry import ModelInfo


@dataclass(frozen=True)
class Preprocess:
    """Size and normalisation of a network's input: pixels are scaled to 0..1, then (x - mean) / std.

    Args:
        input_shape: (channels, height, width), each >= 1.
        mean: one value for each channel.
        std: one value for each channel, > 0 and finite.

    Raises:
        DataError: a size below 1, another number of means or stds than channels, a std not above 0, or a value
            that is not finite.
    """

    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.input_shape) != 3 or min(self.input_shape) < 1:
            raise DataError(
                f"input shape {shape_text(self.input_shape)} is not allowed; pass channels x height x width, "
                f"each 1 or more."
            )
        channels = self.input_shape[0]
        if len(self.mean) != channels or len(self.std) != channels:
            raise DataError(
                f"input {shape_text(self.input_shape)} needs {channels} means and stds, one per channel; "
                f"got {len(self.mean)} and {len(self.std)}."
            )
        if not all(0 < value < math.inf for value in self.std):
            raise DataError(f"std {self.std} is not allowed; each value must be above 0 and finite.")
        if not all(math.isfinite(value) for value in self.mean):
            raise DataError(f"mean {self.mean} is not allowed; each value must be finite.")


def preprocess_for(info: ModelInfo, input_shape: tuple[int, int, int] | None = None) -> Preprocess:
    """The preprocessing that an architecture expects, at another input shape if one is given.

    Args:
        info: from `dprp.models.info`.
        input_shape: (channels, height, width); None takes the architecture's own. For another number of
            channels than `info` normalises, the average over its channels is used for each.

    Returns:
        Shape and normalisation for `ImageData.train` and `ImageData.test`.

    Raises:
        DataError: neither `info` nor the caller says the shape.
    """
    shape = input_shape or info.input_shape
    if shape is None:
        raise DataError(f"{info.name}: a user's own architecture does not say its input shape; pass --input CxHxW.")
    if shape[0] == len(info.mean):
        return Preprocess(shape, info.mean, info.std)
    mean, std = sum(info.mean) / len(info.mean), sum(info.std) / len(info.std)
    return Preprocess(shape, (mean,) * shape[0], (std,) * shape[0])


def shape_text(shape: tuple[int, ...]) -> str:
    """An image shape as on the command line: 3x32x32."""
    return "x".join(map(str, shape))
