"""What is found in a network, what it costs, and what is left alone and why."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm
from torch.nn.utils.parametrizations import weight_norm

from dprp.converter import Form, ModelError, survey
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


def test_of_a_depthwise_layer_the_forms_that_pay_are_offered_and_the_others_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 3, padding=1, groups=64)).eval()
    layer = survey(model, EXAMPLE).layers[1]
    assert layer.forms == {Form.SPATIAL: 1}
    assert layer.dear == (Form.CHANNEL, Form.POINTWISE)
    assert "spatial 1/3; channel, pointwise: no rank is cheaper" in str(survey(model, EXAMPLE))


def test_a_quantized_network_is_refused_with_a_remedy() -> None:
    small = nn.Sequential(nn.Flatten(), nn.Linear(768, 8)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch moves its quantization to another package
        quantized = torch.ao.quantization.quantize_dynamic(small, {nn.Linear})
        with pytest.raises(ModelError, match=r"1: is a Linear of integers; compress the network as it was before"):
            survey(quantized, EXAMPLE)


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
    assert layers.layers[0].reason == "its weight is read without calling it"


def test_the_model_is_left_as_it_was(residual: nn.Module) -> None:
    residual.down.train()
    before = copy.deepcopy(residual.state_dict())
    survey(residual, EXAMPLE)
    assert residual.down.training
    assert not residual.stem.training
    assert all(torch.equal(before[name], value) for name, value in residual.state_dict().items())
    assert not residual.stem._forward_hooks
