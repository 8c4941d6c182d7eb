"""Train `digits_cnn` on scikit-learn's digits: python -m dprp.models.pretrain_digits --output FILE."""

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from ..files import check_output, written_whole
from .datasets import load_data
from .digits import digits_cnn
from .errors import ModelsError, WeightsError
from .loaders import loader
from .preprocess import preprocess_for
from .registry import info

EPOCHS = 30
PEAK_LEARNING_RATE = 3e-3


def pretrain(seed: int = 0, epochs: int = EPOCHS) -> tuple[nn.Module, float]:
    """Train on the 1,297 training images; the same seed gives the same weights on the same machine.

    Args:
        seed: of initialisation, order and augmentation.
        epochs: passes over the training images, >= 1.

    Returns:
        The network in eval mode, and its top-1 on the 500 test images, 0..1.

    Raises:
        DataError: scikit-learn is not installed.
    """
    data, preprocess = load_data("digits"), preprocess_for(info("digits_cnn"))
    batches = loader(data.train(preprocess), 64, shuffle=True, seed=seed)
    # A generator of its own would not do: layers and augmentation draw from the global one.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = digits_cnn()
        _fit(model, batches, epochs)
    return model, top1(model, loader(data.test(preprocess), 250))


def _fit(model: nn.Module, batches: DataLoader[tuple[Tensor, int]], epochs: int) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, epochs=epochs, steps_per_epoch=len(batches)
    )
    for _ in range(epochs):
        for images, labels in batches:
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(images), labels, label_smoothing=0.1))
            optimizer.step()
            schedule.step()
    model.eval()


def top1(model: nn.Module, batches: DataLoader[tuple[Tensor, int]]) -> float:
    """Share of images, 0..1, whose highest output is the label's.

    Args:
        model: in eval mode.
        batches: from `loader`.

    Returns:
        Correct / all.
    """
    correct = total = 0
    with torch.inference_mode():
        for images, labels in batches:
            correct += int((model(images).argmax(1) == labels).sum())
            total += len(images)
    return correct / total


def write(model: nn.Module, path: Path, *, force: bool = False) -> None:
    """Write a model's weights as safetensors, whole or not at all.

    Args:
        model: its state dict is written.
        path: the file, in a folder that exists.
        force: replace a file that is there.

    Raises:
        WeightsError: the file is there and not to be replaced, or its folder is not there.
    """
    content = save({key: tensor.contiguous() for key, tensor in model.state_dict().items()})
    with written_whole(path, force=force, error=WeightsError) as temporary:
        temporary.write_bytes(content)


def main(arguments: list[str] | None = None) -> int:
    """Train, write, and print the top-1; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dprp.models.pretrain_digits", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--force", action="store_true", help="replace the file if it is there")
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error(f"--epochs {options.epochs} is not allowed; pass 1 or more.")
    try:
        check_output(options.output, force=options.force, error=WeightsError)
        model, accuracy = pretrain(options.seed, options.epochs)
        write(model, options.output, force=options.force)
    except ModelsError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{options.output}: top-1 {accuracy:.1%} on the 500 test images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
