"""Architectures by name: ours, torchvision's, and the user's own `package.module:function`."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import torchvision
from torch import nn

from .cifar_resnet import cifar_resnet20, cifar_resnet32, cifar_resnet44, cifar_resnet56, cifar_resnet110
from .digits import digits_cnn
from .errors import ArchitectureError
from .own import build_own

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ModelInfo:
    """What an architecture expects at its input.

    Args:
        name: the name given to `build`.
        input_shape: (channels, height, width), or None for a user's own function, which does not say.
        mean: per channel, subtracted after scaling pixels to 0..1.
        std: per channel, divided by after that.
    """

    name: str
    input_shape: tuple[int, int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


_CIFAR: dict[str, Callable[[int], nn.Module]] = {
    "cifar_resnet20": cifar_resnet20,
    "cifar_resnet32": cifar_resnet32,
    "cifar_resnet44": cifar_resnet44,
    "cifar_resnet56": cifar_resnet56,
    "cifar_resnet110": cifar_resnet110,
}
_DIGITS = "digits_cnn"
_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")


def names() -> list[str]:
    """All names that `build` knows: ours first, then torchvision's classification models."""
    return [_DIGITS, *_CIFAR, *_torchvision_names()]


def info(name: str) -> ModelInfo:
    """Input shape and normalisation of an architecture; builds, imports and downloads nothing.

    A user's own function cannot say what it expects: its `input_shape` is None, and mean and std are
    ImageNet's, for three channels.

    Args:
        name: one of `names()`, or `package.module:function`.

    Returns:
        What the architecture expects at its input.

    Raises:
        ArchitectureError: unknown name.
    """
    if ":" in name:
        return ModelInfo(name, None, IMAGENET_MEAN, IMAGENET_STD)
    if name == _DIGITS:
        return ModelInfo(name, (1, 8, 8), (0.0,), (1.0,))
    if name in _CIFAR:
        return ModelInfo(name, (3, 32, 32), IMAGENET_MEAN, IMAGENET_STD)
    _check_known(name)
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    (size,) = preset.crop_size
    return ModelInfo(name, (3, size, size), tuple(preset.mean), tuple(preset.std))


def build(name: str, *, classes: int | None = None) -> nn.Module:
    """A network with random weights, in eval mode; never downloads.

    GoogLeNet and Inception come without their auxiliary heads, which only training from scratch uses, and
    with the input transform that torchvision's own checkpoints of them need.

    Args:
        name: one of `names()`, or `package.module:function`, importable from the current directory too. The
            function is called with no arguments, or with `num_classes` (or `classes`) if `classes` is given.
        classes: outputs of the head, >= 1; None means the architecture's own number (10 for ours, 1000 for
            torchvision's).

    Returns:
        The network, on the CPU unless a user's own function says otherwise.

    Raises:
        ArchitectureError: unknown name, classes < 1, or a user's own function that does not give a network.
    """
    if classes is not None and classes < 1:
        raise ArchitectureError(f"{name}: classes {classes} is not allowed; pass 1 or more.")
    if ":" in name:
        return build_own(name, classes).eval()
    if name == _DIGITS:
        return digits_cnn(classes or 10).eval()
    if name in _CIFAR:
        return _CIFAR[name](classes or 10).eval()
    _check_known(name)
    return _build_torchvision(name, classes or 1000).eval()


def _build_torchvision(name: str, classes: int) -> nn.Module:
    model: nn.Module
    if name in _WITH_AUXILIARY_HEADS:
        # Unless told, torchvision warns and initialises slowly. transform_input is what it sets itself with its
        # own weights: without it their checkpoint would see wrongly scaled images.
        model = torchvision.models.get_model(
            name,
            weights=None,
            num_classes=classes,
            init_weights=False,
            aux_logits=False,
            transform_input=True,
        )
    else:
        model = torchvision.models.get_model(name, weights=None, num_classes=classes)
    return model


def _torchvision_names() -> list[str]:
    return list(torchvision.models.list_models(module=torchvision.models))


def _check_known(name: str) -> None:
    if name in _torchvision_names():
        return
    close = difflib.get_close_matches(name.lower(), names(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "dprp.models.names() lists what there is."
    raise ArchitectureError(
        f"{name}: no such architecture; pass one of ours, a torchvision classification model or "
        f"package.module:function; {hint}"
    )
