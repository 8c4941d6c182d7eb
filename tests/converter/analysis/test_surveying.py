"""What is found in a network, what it costs, and what is left alone and why."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm
from torch.nn.utils.parametrizations import weight_norm

from dprp.converter import (
    survey,
)
from dprp.converter.analysis.surveying import Survey

EXAMPLE = torch.zeros(2, 3, 16, 16)


def reasons(layers: Survey) -> dict[str, str | None]:
    return {layer.name: layer.reason for layer in layers}


def test_layers_come_in_the_order_in_which_they_run_and_idle_ones_last(residual: nn.Module) -> None:
    layers = survey(residual, EXAMPLE)
    assert [layer.name for layer in layers] == ["stem", "down", "twice", "head", "idle"]
    assert layers.macs == sum(layer.macs for layer in layers)
    assert layers.params == sum(p.numel() for p in residual.parameters())
    twice = layers.layers[2]
    assert twice.aliases == ("alias",)
    assert twice.macs == 2 * 32 * 32 * 9 * 64  # both calls
    assert "forward did not run" in (reasons(layers)["idle"] or "")
    assert "twice" in str(layers)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_every_reason_to_stay() -> None:
    class Own(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    tied = nn.Linear(64, 64)
    other = nn.Linear(64, 64)
    other.weight = tied.weight
    hooked = nn.Conv2d(64, 64, 3, padding=1)
    hooked.register_forward_hook(lambda *_: None)
    model = nn.Sequential(
        Own(3, 64, 3, padding=1),
        weight_norm(nn.Conv2d(64, 64, 3, padding=1)),
        hooked,
        nn.Conv2d(64, 1, 1),
        nn.ConvTranspose2d(1, 64, 1),
        old_weight_norm(nn.Conv2d(64, 64, 3)),
        spectral_norm(nn.Conv2d(64, 64, 3)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        tied,
        other,
    ).eval()
    found = reasons(survey(model, EXAMPLE))
    assert found["0"] == "Own computes something else than Conv2d"
    remedy = 'torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")'
    assert found["1"] == f"its weight is parametrized; fold it first, by {remedy}"
    assert found["2"] == "it has hooks that a replacement would lose; remove them first"
    assert found["3"] == "too small: no rank makes it cheaper"
    assert found["4"] == "too small: no rank makes it cheaper"
    for name, remedy in (("5", "remove_weight_norm"), ("6", "remove_spectral_norm")):
        assert found[name] == f"its weight is computed by a hook; fold it first, by torch.nn.utils.{remedy}(layer)"
    assert found["9"] == "its weight is tied to 10"
    assert found["10"] == "its weight is tied to 9"


def test_attention_of_a_kind_of_its_own_reads_its_projection_without_calling_it() -> None:
    class Own(nn.MultiheadAttention):
        pass

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Own(32, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x, x, x, need_weights=False)[0]

    layers = survey(Attention().eval(), torch.randn(2, 5, 32))
    assert [layer.name for layer in layers] == ["inner.out_proj", "(outside of layers)"]
    assert layers.layers[0].reason is not None


def test_the_model_is_left_as_it_was(residual: nn.Module) -> None:
    residual.down.train()
    before = copy.deepcopy(residual.state_dict())
    survey(residual, EXAMPLE)
    assert residual.down.training
    assert not residual.stem.training
    assert all(torch.equal(before[name], value) for name, value in residual.state_dict().items())
    assert not residual.stem._forward_hooks
