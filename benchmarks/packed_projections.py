"""Attention's q, k and v: one matrix with a shared first factor, or three? At equal MACs, on a ViT trained here.

    python benchmarks/packed_projections.py cifar10.npz --epochs 10

Trains a small vision transformer on CIFAR-10, cuts the projections of all its layers to a part of their MACs on 1,000
images, and prints what of the projections' outputs is lost, how far the answers move, and top-1.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.vision_transformer import VisionTransformer

from dprp.converter.lowrank.decomposition import decompose, regularised, tail_energies
from dprp.models import load_data, loader, preprocess_for
from dprp.models.augment import Augment
from dprp.models.registry import info

WIDTH, HEADS, LAYERS, PATCH = 128, 4, 6, 8
PARTS = (0.7, 0.5, 0.35, 0.25)


def trained(images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    """AdamW, one cycle, mirrored and shifted images."""
    model = VisionTransformer(32, PATCH, LAYERS, HEADS, WIDTH, 2 * WIDTH, num_classes=10)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    steps = len(images) // 128
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, epochs * steps)
    for epoch in range(epochs):
        order = torch.randperm(len(images))
        for step in range(steps):
            some = order[128 * step : 128 * (step + 1)]
            x = F.pad(images[some].flip(-1) if step % 2 else images[some], (4, 4, 4, 4))
            down, across = torch.randint(0, 9, (2,)).tolist()
            answers = model(x[..., down : down + 32, across : across + 32])
            loss = F.cross_entropy(answers, labels[some], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {float(loss.detach()):.2f}", flush=True)
    return model.eval()


def packed(matrices: list[Tensor], moment: Tensor, budget: float) -> list[Tensor]:
    """One first factor for all three."""
    whole = torch.cat(matrices)
    rank = int(budget / sum(whole.shape))
    return list(decompose(whole, rank, moment).product().chunk(3))


def apart(matrices: list[Tensor], moment: Tensor, budget: float) -> list[Tensor]:
    """Each with its own, its rank where it saves the most."""
    errors = [tail_energies(matrix, moment) for matrix in matrices]
    ranks = [1] * len(matrices)
    while (sum(ranks) + 1) * sum(matrices[0].shape) <= budget:
        gains = [float(error[rank] - error[rank + 1]) for error, rank in zip(errors, ranks, strict=True)]
        ranks[gains.index(max(gains))] += 1
    return [decompose(matrix, rank, moment).product() for matrix, rank in zip(matrices, ranks, strict=True)]


@torch.no_grad()
def cut(
    model: nn.Module, images: Tensor, part: float, how: Callable[[list[Tensor], Tensor, float], list[Tensor]]
) -> tuple[nn.Module, float]:
    """A copy with cut projections, and the part of their outputs' variance that is lost."""
    seen: dict[str, Tensor] = {}
    attentions = {name: one for name, one in model.named_modules() if isinstance(one, nn.MultiheadAttention)}
    handles = [
        one.register_forward_pre_hook(lambda _module, inputs, name=name: seen.__setitem__(name, inputs[0]))
        for name, one in attentions.items()
    ]
    model(images)
    for handle in handles:
        handle.remove()
    smaller = copy.deepcopy(model)
    lost = total = 0.0
    for name in attentions:
        rows = seen[name].reshape(-1, WIDTH).double()
        moment = regularised((rows - rows.mean(0)).mT @ (rows - rows.mean(0)) / len(rows))
        weight = smaller.get_submodule(name).in_proj_weight
        before = weight.detach().double().clone()
        weight.copy_(torch.cat(how(list(before.chunk(3)), moment, part * before.numel())))
        change = weight.double() - before
        lost += float((change @ moment * change).sum())
        total += float((before @ moment * before).sum())
    return smaller, lost / total


@torch.no_grad()
def answers(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(part).log_softmax(-1) for part in images.split(500)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--weights", type=Path, help="of an earlier run; written where there is no such file")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    data, how = load_data(f"npz:{arguments.data}"), preprocess_for(info("cifar_resnet20"))
    train, test = (
        [torch.cat(part) for part in zip(*loader(images, 500), strict=True)]
        for images in (data.train(how, Augment.NONE), data.test(how))
    )
    if arguments.weights and arguments.weights.exists():
        model = VisionTransformer(32, PATCH, LAYERS, HEADS, WIDTH, 2 * WIDTH, num_classes=10).eval()
        model.load_state_dict(torch.load(arguments.weights, weights_only=True))
    else:
        model = trained(train[0], train[1].long(), arguments.epochs)
        if arguments.weights:
            torch.save(model.state_dict(), arguments.weights)
    wanted = answers(model, test[0])
    print(f"dense: {100 * float((wanted.argmax(1) == test[1]).double().mean()):.2f} % of {len(wanted)}")
    for part in PARTS:
        for name, way in (("one", packed), ("three", apart)):
            smaller, lost = cut(model, train[0][:1000], part, way)
            found = answers(smaller, test[0])
            nats = float(F.kl_div(found, wanted, log_target=True, reduction="batchmean"))
            top1 = 100 * float((found.argmax(1) == test[1]).double().mean())
            print(f"{part:.2f} {name:>5}: {100 * lost:5.2f} % lost, {nats:.4f} nats, {top1:.2f} %", flush=True)


if __name__ == "__main__":
    main()
