"""What a small change of one layer does to the answers is foretold from one pass forward and back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dprp.converter.analysis.agreement import agreement
from dprp.converter.analysis.answer_changes import answer_changes
from dprp.converter.analysis.answer_slopes import TEMPERATURE
from dprp.converter.analysis.batch_axis import batch_axes
from dprp.converter.analysis.norm_pairs import norm_scales

IMAGES = torch.randn(256, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def effects(model: nn.Module, changes: dict[str, list[Tensor]], images: Tensor = IMAGES) -> dict[str, list[object]]:
    probe = copy.deepcopy(model)
    for parameter in probe.parameters():
        parameter.requires_grad_(False)
    axes, scales = batch_axes(probe, changes, images), norm_scales(probe, [images[:2]])
    return answer_changes(probe, images, changes, axes, scales, bytes_an_image=2**20)


@torch.no_grad()
def softened(model: nn.Module, images: Tensor) -> Tensor:
    return F.log_softmax(model(images) / TEMPERATURE, -1)


@pytest.mark.parametrize("layer", ["stem", "down", "head"])
def test_it_is_the_divergence_of_a_network_with_that_layer_changed(residual: nn.Module, layer: str) -> None:
    weight = residual.get_submodule(layer).weight
    change = 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)) * weight.std()
    (effect,) = effects(residual, {layer: [change]})[layer]
    changed = copy.deepcopy(residual)
    module = changed.get_submodule(layer)
    means: list[Tensor] = []

    def centre(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        axes = [axis for axis in range(output.dim()) if axis != 1]
        if not means:
            means.append(output.mean(axes, keepdim=True))
            return output
        return output - output.mean(axes, keepdim=True) + means[0]

    handle = module.register_forward_hook(centre)
    wanted = softened(changed, IMAGES)
    with torch.no_grad():
        module.weight.add_(change)
    measured = TEMPERATURE**2 * float(F.kl_div(softened(changed, IMAGES), wanted, log_target=True, reduction="sum"))
    handle.remove()
    assert effect.nats == pytest.approx(measured / len(IMAGES), rel=0.4)


def test_effects_grow_with_the_square_of_a_change_and_the_model_stays(residual: nn.Module) -> None:
    before = copy.deepcopy(residual.state_dict())
    change = torch.randn_like(residual.down.weight)
    small, large = effects(residual, {"down": [change, 3 * change]})["down"]
    assert large.nats == pytest.approx(9 * small.nats, rel=1e-3)
    assert large.lost == pytest.approx(9 * small.lost, rel=1e-3)
    whole = effects(residual, {"down": [-residual.down.weight.detach()]})["down"][0]
    assert whole.lost == pytest.approx(1.0, rel=1e-4)  # nothing of the output is left
    assert all(torch.equal(before[name], value) for name, value in residual.state_dict().items())


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("changes", [1, 20])  # by running the layer, and from its windows
def test_a_layer_with_a_norm_behind_loses_what_the_norm_s_output_loses(affine: bool, changes: int) -> None:
    conv, norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, affine=affine, momentum=None)
    model = nn.Sequential(conv, norm, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 5))
    conv.weight.data *= torch.logspace(-2, 0, 8).reshape(-1, 1, 1, 1)  # quiet channels count as much as loud ones
    conv.weight.data[0] = 0.0  # but one that is nothing counts nothing
    if affine:
        nn.init.uniform_(norm.weight, 0.1, 2.0)
    model(IMAGES)
    change = 0.1 * torch.randn(conv.weight.shape) * conv.weight.std()
    lost = effects(model.eval(), {"0": [change] * changes})["0"][0].lost
    with torch.no_grad():
        wanted = norm(conv(IMAGES))
        conv.weight.add_(change)
        moved = (norm(conv(IMAGES)) - wanted)[:, 1:]
        varies = [(part - part.mean((0, 2, 3), keepdim=True)).square().sum((0, 2, 3)) for part in (moved, wanted)]
    assert lost == pytest.approx(float(varies[0].sum() / varies[1].sum()), rel=1e-3)


def test_layers_without_a_gradient_are_left_out() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lost, self.kept, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                aside = self.lost(x)
            return self.head((self.kept(x) + aside).relu_().mean((2, 3)))

    model = Cut().eval()
    found = effects(model, {name: [torch.ones_like(model.get_submodule(name).weight)] for name in ("lost", "kept")})
    assert found.keys() == {"kept"}


@pytest.mark.parametrize("overwritten", [False, True])
def test_networks_that_write_to_their_tensors(overwritten: bool) -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x.sub_(0.5)
            y = self.first(x).sigmoid()
            z = y * y
            if overwritten:
                y.zero_()  # which the gradient of both needs
            return self.head(z.mean((2, 3)))

    model = Writing().eval()
    given = IMAGES.clone()
    model.requires_grad_(False)
    found = answer_changes(
        model, given, {"first": [torch.ones_like(model.first.weight)]}, {"first": 0}, {}, bytes_an_image=1
    )
    assert found.keys() == (set() if overwritten else {"first"})
    assert torch.equal(given, IMAGES)


def test_agreement_counts_equal_answers() -> None:
    class First(nn.Module):
        def __init__(self, turned: int) -> None:
            super().__init__()
            self.turned = turned

        def forward(self, x: Tensor) -> Tensor:
            return torch.where(torch.arange(len(x)).unsqueeze(1) < self.turned, -x, x)

    images = torch.rand(20, 3)
    found = agreement(First(5), First(0), images)
    assert (found.part, found.images) == (0.75, 20)
    assert str(found) == "75.0 % of 20 images"
    assert found.to_dict() == {"part": 0.75, "images": 20, "nats": found.nats}
    ours, theirs = images[:5].neg().log_softmax(-1), images[:5].log_softmax(-1)
    assert found.nats == pytest.approx(float((theirs.exp() * (theirs - ours)).sum()) / 20, rel=1e-5)
    assert agreement(First(0), First(0), images).nats == pytest.approx(0.0, abs=1e-7)
    assert agreement(First(0), First(0), images * torch.nan).to_dict()["nats"] is None
