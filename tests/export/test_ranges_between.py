"""Ranges between two products meet on the way, and the function stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from dprp.export import Target, layer_differences, nodes_by_error, quantize, to_onnx
from dprp.export.cpu_targets import Recipe
from dprp.export.ranges_between import draw_together
from dprp.export.session import Array, infer, open_session

_CASES: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "convolutions": (nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 1)), (3, 9, 9), 1),
    "both with a bias": (nn.Sequential(nn.Conv1d(4, 6, 3), nn.Conv1d(6, 6, 3)), (4, 20), 1),
    "groups": (nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(6, 8, 1, groups=2)), (4, 9, 9), 1),
    "videos": (nn.Sequential(nn.Conv3d(3, 5, (3, 1, 1)), nn.Conv3d(5, 6, (1, 3, 3))), (3, 5, 6, 6), 1),
    "rows": (nn.Sequential(nn.Linear(7, 4, bias=False), nn.Linear(4, 9)), (7,), 1),
    "tokens": (nn.Sequential(nn.Linear(7, 4, bias=False), nn.Linear(4, 9, bias=False)), (5, 7), 1),
    "three in a row": (nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 3), nn.Conv2d(5, 8, 1)), (3, 9, 9), 2),
    "something in between": (nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 1)), (3, 9, 9), 0),
}


class _ReadTwice(nn.Module):
    """What the first layer gives is read by others, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        between = self.first(x)
        other: Tensor = self.second(between) + between
        return other


class _OneWeight(nn.Module):
    """The second layer's weight is the first one's."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        twice: Tensor = self.layer(self.layer(x))
        return twice


def _spread(model: nn.Module) -> nn.Module:
    """Outputs of a layer up to a thousand times as large as others."""
    torch.manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
                nn.init.normal_(module.weight)
                scale = torch.logspace(-1.5, 1.5, len(module.weight))
                module.weight.mul_(scale.reshape(-1, *[1] * (module.weight.dim() - 1)))
    return model.eval()


def _run(model: onnx.ModelProto, x: Array) -> Array:
    return infer(open_session(model.SerializeToString()), [x], "it")[0]


def _between(model: onnx.ModelProto, name: str, x: Array) -> Array:
    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    del seen.graph.output[:]
    seen.graph.output.append(onnx.ValueInfoProto(name=name))
    return _run(seen, x)


def _channels(layers: nn.Module) -> int:
    first = next(layers.children())
    return len(first.weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", _CASES)
@pytest.mark.parametrize("part", [0.25, 0.5, 1.0])
def test_ranges_meet_and_the_function_stays(case: str, part: float, tmp_path: Path) -> None:
    layers, sizes, pairs = _CASES[case]
    x = torch.randn(6, *sizes, generator=torch.Generator().manual_seed(1))
    to_onnx(_spread(layers), x, tmp_path / "a.onnx")
    exact, drawn = onnx.load(tmp_path / "a.onnx"), onnx.load(tmp_path / "a.onnx")
    batches = [x[:4].numpy(), x[4:].numpy()]
    assert len(draw_together(drawn, batches, part, "it")) == pairs
    expected = _run(exact, x.numpy())
    np.testing.assert_allclose(_run(drawn, x.numpy()), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    if pairs != 1:
        return
    name = next(node.output[0] for node in drawn.graph.node if node.op_type in ("Conv", "Gemm", "MatMul"))
    axis = -1 if "Linear" in str(layers) else 1
    before, after = (
        np.abs(np.moveaxis(_between(model, name, x.numpy()), axis, 0)).reshape(_channels(layers), -1)
        for model in (exact, drawn)
    )
    old = before.max(1)
    np.testing.assert_allclose(after.max(1), old * (old.max() / old) ** part, rtol=1e-4)


class _Stacked(nn.Module):
    """Products with one matrix for each of three batches, as many as there are channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(3, 8, 3) * torch.logspace(-1.5, 1.5, 3))
        self.second = nn.Parameter(torch.randn(3, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        twice: Tensor = x @ self.first @ self.second
        return twice


@pytest.mark.parametrize("make", [_ReadTwice, _OneWeight, _Stacked])
def test_what_others_read_stays(make: type[nn.Module], tmp_path: Path) -> None:
    x = torch.randn(4, 3, 8, 8)
    to_onnx(_spread(make()), x, tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    before = model.SerializeToString(deterministic=True)
    assert draw_together(model, [x.numpy()], 0.5, "it") == ()
    assert model.SerializeToString(deterministic=True) == before


def test_channels_without_a_range_stay_finite(tmp_path: Path) -> None:
    layers = _spread(nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.Conv2d(6, 8, 1)))
    with torch.no_grad():
        layers[0].weight[2] = 0.0  # type: ignore[index,operator]
    to_onnx(layers, torch.randn(2, 3, 8, 8), tmp_path / "a.onnx")
    for x in (torch.randn(4, 3, 8, 8), torch.zeros(4, 3, 8, 8)):
        model = onnx.load(tmp_path / "a.onnx")
        draw_together(model, [x.numpy()], 0.5, "it")
        assert np.isfinite(_run(model, np.ones((1, 3, 8, 8), np.float32))).all()


@pytest.mark.parametrize("target", [Target.X86_VNNI, Target.ARM])
def test_a_file_of_8_bits_keeps_small_channels(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of channels far smaller than the largest, which the second layer makes large again."""
    torch.manual_seed(0)
    layers = _spread(nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.Conv2d(6, 8, 1)))
    with torch.no_grad():
        layers[1].weight.div_(torch.logspace(-1.5, 1.5, 6).reshape(1, 6, 1, 1))  # type: ignore[operator]
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    exact, small = tmp_path / "a.onnx", tmp_path / "small.onnx"
    to_onnx(layers, x[:2], exact)
    made = quantize(exact, small, [x], target=target)
    assert made.drawn == ("0/Conv",)
    drawn = layer_differences(layers, small, x)
    assert [one.layer for one in drawn] == ["0", "1"]
    monkeypatch.setattr(Recipe, "drawn", 0.0)
    quantize(exact, small, [x], target=target, force=True)
    as_it_was = layer_differences(layers, small, x)
    assert drawn[1].relative < as_it_was[1].relative / 2
    assert {"0", "1"} == {name.split("/")[0] for name in nodes_by_error(exact, small, [x])}
