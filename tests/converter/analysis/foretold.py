"""How far foretold errors are from what layers lose in truth, on images that nothing was fitted on.

    python -m tests.converter.analysis.foretold mobilenet_v2 checkpoints/mobilenet_v2.pth npz:imagenet.npz
    python -m tests.converter.analysis.foretold resnet18

Without a checkpoint the network is fresh and its images are noise, smoothed as pictures are.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dprp.converter import Form, RankRatio, calibrate, foretell, plan_ranks, survey
from dprp.converter.analysis.layout import laid_out
from dprp.converter.analysis.norm_pairs import norm_scales
from dprp.converter.analysis.opening import layers_inside, opened
from dprp.converter.analysis.products import joined
from dprp.converter.conversion import sequential
from dprp.converter.lowrank import LowRank
from dprp.models import Augment, build, info, load_data, load_weights, loader, preprocess_for


@dataclass(frozen=True)
class Foretold:
    """One layer in one form, alone.

    Attributes:
        foretold, measured: lost part of what varies in its output, as the norm behind scales it, where there is one.
    """

    layer: str
    form: Form
    rank: int
    foretold: float
    measured: float

    @property
    def holds(self) -> bool:
        """Within 20 %, or 0.1 % of the output."""
        return abs(self.foretold - self.measured) <= max(0.2 * self.measured, 1e-3)


def foretold(model: nn.Module, images: Tensor, held_out: Tensor, ratio: float = 0.5) -> list[Foretold]:
    """Every layer in every form at a part of its full rank, fitted on images and measured on others."""
    model = opened(model.eval(), layers_inside(model.eval(), images[:1]))
    layers = survey(model, images[:1])
    calibration = calibrate(model, layers, images)
    losses = foretell(model, layers, calibration)
    model = joined(model, layers.products)
    found = []
    for form in (Form.CHANNEL, Form.POINTWISE, Form.SPATIAL):
        plan = plan_ranks(layers, RankRatio(ratio), forms=[form], energies=losses.errors)
        with _each_alone():
            images, metrics = calibration.images, calibration.metrics
            made = sequential.reconstruct(model, plan, images, ridge=1e-4, metrics=metrics).layers
        measured = _measured(model, made, laid_out(model, held_out))
        for name, layer in plan.factored.items():
            assert layer.form is not None
            assert layer.rank is not None
            assert layer.error is not None
            if layer.form is form:
                found.append(Foretold(name, form, layer.rank, layer.error, measured[name]))
    return found


@contextmanager
def _each_alone() -> Iterator[None]:
    """Layers are fitted as ever, but hand on what the dense layer gives."""

    class Alone(sequential.Cut):
        def forward(self, input: Tensor) -> Tensor:
            super().forward(input)
            return self.dense(input)  # type: ignore[no-any-return]

    before = sequential.Cut
    sequential.Cut = Alone  # type: ignore[misc]
    try:
        yield
    finally:
        sequential.Cut = before  # type: ignore[misc]


@torch.no_grad()
def _measured(model: nn.Module, made: dict[str, LowRank], images: Tensor) -> dict[str, float]:
    found: dict[str, float] = {}
    scales = norm_scales(model, [images[:1]])

    def look(name: str) -> object:
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            channels = 1 if isinstance(module, nn.Conv2d) else output.dim() - 1
            axes = [axis for axis in range(output.dim()) if axis != channels]
            error = output - made[name](inputs[0])
            lost, whole = ((y - y.mean(axes, keepdim=True)).square().sum(axes).double() for y in (error, output))
            if name in scales:
                lost, whole = (scales[name].square() * part / whole.clamp_min(1e-300) for part in (lost, whole))
            found[name] = float(lost.sum() / whole.sum().clamp_min(1e-300))

        return model.get_submodule(name).register_forward_hook(hook)

    handles = [look(name) for name in made]
    model(images)
    for handle in handles:
        handle.remove()  # type: ignore[attr-defined]
    return found


def pictures(count: int, size: int) -> Tensor:
    """Noise, smoothed as pictures are: (count, 3, size, size)."""
    noise = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    return sum(F.avg_pool2d(noise, 2 * k + 1, 1, k) * (2 * k + 1) for k in range(4)) / 2  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("data", nargs="?", help="as dprp takes it")
    parser.add_argument("--images", type=int, default=200)
    arguments = parser.parse_args()
    model = build(arguments.model)
    preprocess = preprocess_for(info(arguments.model))
    if arguments.checkpoint is None:
        images, held_out = pictures(2 * arguments.images, preprocess.input_shape[-1]).split(arguments.images)
    else:
        load_weights(model, arguments.checkpoint)
        data = load_data(arguments.data)
        images, held_out = (
            torch.cat([batch[0] for batch in loader(split, 100, limit=arguments.images)])
            for split in (data.train(preprocess, Augment.NONE), data.test(preprocess))
        )
    found = foretold(model, images, held_out)
    for one in found:
        print(f"{one.layer:28s} {one.form:10s} {one.rank:5d} {100 * one.foretold:8.3f} % {100 * one.measured:8.3f} %")
    print(f"{sum(one.holds for one in found)} of {len(found)} hold within 20 % or 0.1 % of the output")


if __name__ == "__main__":
    main()
