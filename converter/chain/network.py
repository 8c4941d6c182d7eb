"""MODEL and its options become a network that knows its input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ...files import file_sha256
from ...models import Preprocess, build, info, load_weights, preprocess_for
from ..analysis.inputs import Inputs, Samples
from ..analysis.probe import evaluating
from ..analysis.running import run
from ..analysis.surveying import survey
from ..errors import OptionError
from ..storage.checkpoint import is_compressed, load_compressed
from ..storage.source import Source

_PICKLES = (".pth", ".th", ".pt", ".ckpt", ".bin")


@dataclass(frozen=True)
class Network:
    """A network in eval mode on the CPU, how to build it, and what it eats.

    Attributes:
        model: the network; it has low-rank layers if it came from a compressed checkpoint.
        source: how to build the plain network.
        compressed: whether it came from a compressed checkpoint.
        given: what it eats, where more than a tensor of the source's shape belongs to it; None where it does not.
    """

    model: nn.Module
    source: Source
    compressed: bool
    given: Inputs | None = None

    @property
    def preprocess(self) -> Preprocess:
        """Size and normalisation of its input."""
        return Preprocess(self.source.input_shape, self.source.mean, self.source.std)  # type: ignore[arg-type]

    def example(self, images: int = 1) -> Samples:
        """Noise as input, (images, C, H, W), always the same, of the type of the weights; or so many of the given."""
        if self.given is not None:
            return self.given[torch.arange(images) % len(self.given)]
        noise = torch.randn(images, *self.source.input_shape, generator=torch.Generator().manual_seed(0))
        return noise.to(next((p.dtype for p in self.model.parameters() if p.is_floating_point()), noise.dtype))

    def labelled(self, names: Sequence[str]) -> Network:
        """The same network, its outputs named.

        Args:
            names: printable, one an output; none leaves it as it is.
        """
        return replace(self, source=replace(self.source, labels=tuple(names))) if names else self

    def classes(self) -> int:
        """Outputs, found by running it once.

        Raises:
            ModelError: it cannot take its input.
            OptionError: it gives something else than a row of scores an image.
        """
        survey(self.model, self.example())  # says what is wrong with the input, where something is
        with evaluating(self.model), torch.no_grad():
            outputs = run(self.model, self.example())
        if not isinstance(outputs, Tensor) or outputs.dim() != 2:
            raise OptionError(
                f"{self.source.model}: does not give one row of scores an image; only classifiers can be used"
            )
        return outputs.shape[1]


def open_network(
    model: str,
    *,
    checkpoint: Path | str | None = None,
    classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    random_weights: bool = False,
    trust: str | None = None,
    dense: bool = False,
    seed: int = 0,
) -> Network:
    """Finds or builds a network.

    Args:
        model: a name that `dprp.models.build` knows, or a compressed `.safetensors`, which says all else itself.
        checkpoint: weights of the named architecture.
        classes: outputs; None for the architecture's own.
        input_shape: (channels, height, width); None for the architecture's own.
        mean, std: per channel, or one value for all; None for the architecture's own.
        random_weights: whether a missing checkpoint is meant.
        trust: `package.module:function` that a compressed checkpoint may be built by.
        dense: refuse a compressed checkpoint, unread.
        seed: of random weights.

    Raises:
        OptionError: options that do not go together.
        ModelsError: no such architecture, or a checkpoint that cannot be read or does not fit.
        CheckpointError: a compressed checkpoint that cannot be read.
    """
    suffix = Path(model).suffix.lower()
    if suffix == ".safetensors":
        if dense:
            raise OptionError(
                "MODEL is compressed already; start from the dense network, or go on with dprp finetune"
                if is_compressed(model)
                else f"{model}: is a checkpoint, not a model; give the model's name and --checkpoint {model}"
            )
        given = {
            "--checkpoint": checkpoint,
            "--classes": classes,
            "--input": input_shape,
            "--mean": mean,
            "--std": std,
            "--random-weights": random_weights or None,
        }
        extra = [option for option, value in given.items() if value is not None]
        if extra:
            raise OptionError(
                f"{model}: a compressed checkpoint brings its own weights and input; leave {extra[0]} out"
            )
        loaded = load_compressed(model, build_plain, trust=trust)
        if len(loaded.source.input_shape) != 3:
            size = "x".join(map(str, loaded.source.input_shape))
            raise OptionError(
                f"{model}: eats {size}, and the command line reads images CxHxW; use dprp.load in Python"
            )
        return Network(loaded.model, loaded.source, compressed=True)
    if suffix == ".onnx":
        raise OptionError(
            f"{model}: an ONNX file has no layers to work on; give the model's name or a .safetensors of ours"
        )
    if suffix in _PICKLES:
        raise OptionError(f"{model}: is a checkpoint, not a model; give the model's name and --checkpoint {model}")
    if checkpoint is None and not random_weights:
        raise OptionError(f"{model}: no weights given; pass --checkpoint FILE, or --random-weights if you mean that")
    if checkpoint is not None and random_weights:
        raise OptionError("--checkpoint and --random-weights exclude each other; pass one of them")
    usual = preprocess_for(info(model), input_shape)
    channels = usual.input_shape[0]
    eats = Preprocess(
        usual.input_shape, _per_channel(mean, channels, usual.mean), _per_channel(std, channels, usual.std)
    )
    torch.manual_seed(seed)
    network = build(model, classes=classes)
    came_from = None
    if checkpoint is not None:
        load_weights(network, checkpoint)
        came_from = file_sha256(Path(checkpoint))
    source = Source(model, classes, eats.input_shape, eats.mean, eats.std, sha256=came_from)
    return Network(network.cpu().eval(), source, compressed=False)


def build_plain(source: Source) -> nn.Module:
    """The plain network that a compressed checkpoint came from, with random weights."""
    return build(source.model, classes=source.classes)


def _per_channel(values: tuple[float, ...] | None, channels: int, usual: tuple[float, ...]) -> tuple[float, ...]:
    if values is None:
        return usual
    return values * channels if len(values) == 1 else values
