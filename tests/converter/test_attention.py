"""Attention is opened: the same function, with projections that are layers, from the survey to the file."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.maxvit import MaxVit
from torchvision.models.swin_transformer import (
    PatchMergingV2,
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
    SwinTransformer,
    SwinTransformerBlockV2,
)

import dprp
from dprp.converter import (
    FinetuneConfig,
    MacBudget,
    RankRatio,
    Unit,
    calibrate,
    convert,
    finetune,
    foretell,
    fuse,
    plan_of,
    plan_ranks,
    polish,
    survey,
)
from dprp.converter.analysis.inputs import as_samples
from dprp.converter.analysis.opening import layers_inside, opened
from dprp.converter.lowrank.attention import OpenAttention, PackedAttention
from dprp.converter.lowrank.window_attention import OpenWindowAttention
from dprp.export import to_onnx


class Transformer(nn.Module):
    """Two of torch's own encoder layers over patches of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, 4)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(self.patches(images).flatten(2).mT).mean(1))


@pytest.fixture
def transformer() -> nn.Module:
    torch.manual_seed(0)
    return Transformer().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(60, 3, 16, 16, generator=torch.Generator().manual_seed(1)).cumsum(-1) / 3


def masks(kind: str, batch: int, heads: int, length: int, source: int) -> Tensor | None:
    if kind == "none":
        return None
    if kind == "float":
        return torch.randn(length, source)
    size = (length, source) if kind == "bool" else (batch * heads, length, source)
    mask = torch.rand(size) < 0.3
    mask[..., 0] = False
    return mask


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("one", [True, False], ids=["one sample", "batch"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "separate"])
@pytest.mark.parametrize("extra", [{}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}])
def test_it_computes_the_same(packed: bool, one: bool, batch_first: bool, extra: dict[str, Any]) -> None:
    torch.manual_seed(0)
    inner = {} if packed else {"kdim": 20, "vdim": 16}
    closed = nn.MultiheadAttention(24, 4, batch_first=batch_first, **inner, **extra).eval()
    open_ = OpenAttention(closed)
    one_layer = PackedAttention(closed) if packed else open_
    batch, length, source = 1 if one else 3, 5, 7

    def given(count: int, width: int) -> Tensor:
        size = (count, width) if one else (batch, count, width) if batch_first else (count, batch, width)
        return torch.randn(size)

    inputs = (given(length, 24), given(source, 24 if packed else 20), given(source, 24 if packed else 16))
    for kind, padded, weighed in itertools.product(("none", "bool", "float", "each"), (False, True), (False, True)):
        mask, padding = masks(kind, batch, 4, length, source), None
        if padded:
            padding = torch.rand(source if one else (batch, source)) < 0.3
            padding[..., 0] = False
            if kind == "float":  # torch wants both masks of one type
                padding = torch.zeros(padding.shape).masked_fill(padding, -torch.inf)
        how: dict[str, Any] = {"key_padding_mask": padding, "attn_mask": mask, "need_weights": weighed}
        for average in (True, False) if weighed else (True,):
            theirs = closed(*inputs, average_attn_weights=average, **how)
            ours = open_(*inputs, average_attn_weights=average, **how)
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(one_layer(*inputs, average_attn_weights=average, **how), ours)
    if packed:
        x = inputs[0]
        torch.testing.assert_close(one_layer(x, x, x), closed(x, x, x), rtol=1e-5, atol=1e-5)


class Decoder(nn.Module):
    """Attention to itself, and to something else."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(32, 4, 64, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.layer(x, memory)


def test_one_layer_gives_q_k_and_v_where_they_are_of_one_tensor() -> None:
    torch.manual_seed(0)
    model, inputs = Decoder().eval(), (torch.randn(8, 5, 32), torch.randn(8, 7, 32))
    names = layers_inside(model, as_samples(inputs))
    assert [name for name in names if "self_attn" in name] == ["layer.self_attn.in_proj"]
    assert sum("multihead_attn" in name for name in names) == 3
    layers = survey(model, inputs)
    counter = FlopCounterMode(display=False)
    torch.backends.mha.set_fastpath_enabled(False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(*(part[:1] for part in inputs))
    torch.backends.mha.set_fastpath_enabled(True)
    assert layers.macs * 2 == counter.get_total_flops()
    full = convert(model, plan_ranks(layers, RankRatio(1.0)))
    torch.testing.assert_close(full(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)
    assert {"layer.self_attn.in_proj", "layer.multihead_attn.k_proj"} <= set(plan_of(full).factored)


def test_the_survey_counts_what_runs(transformer: nn.Module, images: Tensor) -> None:
    layers = survey(transformer, images[:1])
    assert isinstance(transformer.encoder.layers[0].self_attn, nn.MultiheadAttention)  # type: ignore[union-attr]
    found = {layer.name: layer for layer in layers}
    assert found["encoder.layers.0.self_attn.in_proj"].reason is None
    assert found["encoder.layers.0.self_attn.in_proj"].macs == 3 * 32 * 32 * 16
    assert found["(outside of layers)"].macs == 2 * 2 * 16 * 16 * 32  # two layers, two products, 16 patches
    assert found["(outside of layers)"].reason == "no layer makes them"
    counter = FlopCounterMode(display=False)
    torch.backends.mha.set_fastpath_enabled(False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        transformer(images[:1])
    torch.backends.mha.set_fastpath_enabled(True)
    assert layers.macs * 2 == counter.get_total_flops()
    assert layers.params == sum(parameter.numel() for parameter in transformer.parameters())


def test_opening_shares_the_weights_and_only_where_it_is_asked(transformer: nn.Module, images: Tensor) -> None:
    everything = layers_inside(transformer, images)
    twin = opened(transformer, everything)
    theirs = transformer.encoder.layers[0].self_attn.in_proj_weight  # type: ignore[union-attr]
    ours = twin.encoder.layers[0].self_attn.in_proj.weight  # type: ignore[union-attr]
    assert ours.data_ptr() == theirs.data_ptr()  # type: ignore[operator, union-attr]
    assert opened(twin, everything) is twin
    assert opened(transformer, ["head", "encoder.layers.0.self_attn.out_proj"]) is transformer
    half = opened(transformer, ["encoder.layers.1.self_attn.k_proj"])
    kinds = [type(layer.self_attn) for layer in half.encoder.layers]  # type: ignore[union-attr]
    assert kinds == [nn.MultiheadAttention, OpenAttention]  # as plans made before there was one layer for all
    torch.testing.assert_close(half(images), transformer(images))
    torch.testing.assert_close(twin(images), transformer(images))
    transformer.encoder.layers[0].self_attn.out_proj.register_forward_hook(lambda *_: None)  # type: ignore[union-attr, operator]
    kinds = [type(layer.self_attn) for layer in opened(transformer, everything).encoder.layers]  # type: ignore[union-attr]
    assert kinds == [nn.MultiheadAttention, PackedAttention]  # a hook is not lost


@pytest.mark.parametrize("inplace", [True, False])
def test_full_rank_is_the_same_function(transformer: nn.Module, images: Tensor, inplace: bool) -> None:
    expected = transformer(images)
    plan = plan_ranks(survey(transformer, images[:1]), RankRatio(1.0))
    assert "encoder.layers.0.self_attn.in_proj" in plan.factored
    new = convert(transformer, plan, inplace=inplace)
    assert (new is transformer) == inplace
    torch.testing.assert_close(new(images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fuse(new)(images), expected, rtol=1e-4, atol=1e-5)


def test_the_whole_chain(transformer: nn.Module, images: Tensor, tmp_path: Path) -> None:
    before = transformer(images)
    layers = survey(transformer, images[:1])
    calibration = calibrate(transformer, layers, images)
    losses = foretell(transformer, layers, calibration)
    plan = plan_ranks(layers, MacBudget(0.6), energies=losses.errors, rank_multiple=1)
    new = convert(transformer, plan, calibration=calibration)
    assert 0.55 < plan_of(new).fraction(Unit.MACS) <= 0.6
    polish(new, transformer, images[:40], held_out=images[40:])
    train = [(images[:30], torch.arange(30) % 10), (images[30:], torch.arange(30) % 10)]
    config = FinetuneConfig(epochs=1, matching=1.0, cpu=True)
    tuned = finetune(new, train, config, teacher=transformer, progress=False)
    plain = fuse(tuned)
    torch.testing.assert_close(plain(images), tuned(images), rtol=1e-4, atol=1e-4)
    to_onnx(plain, images[:2], tmp_path / "small.onnx")  # raises where the outputs differ
    assert torch.equal(transformer(images), before)


def test_it_is_read_again(transformer: nn.Module, images: Tensor, tmp_path: Path) -> None:
    result = dprp.compress(transformer, images=images, budget="macs=0.6", rank_multiple=1, polish=0)
    result.save(tmp_path / "out")
    again = dprp.load(tmp_path / "out", transformer)
    assert torch.equal(again(images), result.model(images))


@pytest.mark.parametrize("kind", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
@pytest.mark.parametrize("shift", [[0, 0], [3, 3], [3, 0]])
@pytest.mark.parametrize("bias", [True, False])
def test_windows_compute_the_same(kind: type[nn.Module], shift: list[int], bias: bool) -> None:
    torch.manual_seed(0)
    closed = kind(24, [7, 7], shift, 4, qkv_bias=bias).eval()
    with torch.no_grad():
        for parameter in closed.parameters():
            parameter.normal_(std=0.3)
        for size in ((14, 14), (7, 7), (15, 9), (5, 5)):
            x = torch.randn(2, *size, 24)
            for own in (True, False):
                torch.testing.assert_close(OpenWindowAttention(closed, own=own)(x), closed(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", [None, SwinTransformerBlockV2])
def test_swin_from_the_survey_to_the_file(block: Any, images: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    kind = {} if block is None else {"block": block, "downsample_layer": PatchMergingV2}
    swin = SwinTransformer(
        [2, 2], 32, [2, 2], [2, 4], [2, 2], num_classes=10, stochastic_depth_prob=0.0, **kind
    ).eval()
    layers = survey(swin, images[:1])
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        swin(images[:1])
    assert layers.macs * 2 == counter.get_total_flops()
    assert all(layer.reason is None for layer in layers if layer.name.endswith(("attn.qkv", "attn.proj")))
    full = convert(swin, plan_ranks(layers, RankRatio(1.0)))
    torch.testing.assert_close(full(images), swin(images), rtol=1e-4, atol=1e-4)
    calibration = calibrate(swin, layers, images)
    plan = plan_ranks(layers, MacBudget(0.7), energies=calibration.energies, rank_multiple=1)
    new = convert(swin, plan, calibration=calibration)
    assert 0.6 < plan_of(new).fraction(Unit.MACS) <= 0.7
    to_onnx(fuse(new), images[:2], tmp_path / "small.onnx")


def test_other_attention_is_counted_and_left(images: Tensor) -> None:
    torch.manual_seed(0)
    model = MaxVit((32, 32), 16, 4, [16], [1], 8, 0.0, num_classes=10).eval()
    example = torch.randn(1, 3, 32, 32)
    layers = survey(model, example)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(example)
    assert layers.macs * 2 == pytest.approx(counter.get_total_flops(), rel=1e-3)
