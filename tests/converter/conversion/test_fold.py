"""BatchNorm folds where that keeps the function, always the same ones, and nowhere else."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dprp.converter import ConverterWarning, ModelError, fold_batch_norms
from dprp.converter.analysis.running import tensors_in

Norms = (nn.BatchNorm1d, nn.BatchNorm2d)


def unlike_fresh(model: nn.Module) -> nn.Module:
    """With statistics that a fold which forgets one of them gets wrong."""
    for module in model.modules():
        if isinstance(module, Norms):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2.0)
                nn.init.normal_(module.bias)
    return model.eval()


def norms_of(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Norms)]


@dataclass
class Answer:
    """An output as libraries of detectors and transformers give it."""

    scores: Tensor
    features: Tensor


class Box:
    """An output that is no container."""

    def __init__(self, features: Tensor) -> None:
        self.features = features


class ReluNorm(nn.BatchNorm2d):
    """timm's BatchNormAct and InPlaceABN do this."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def double(y: Tensor) -> Tensor:
    return y * 2.0


with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # deprecated, and in use
    doubled = torch.jit.script(double)


class Peek(nn.Module):
    """A convolution and a norm that must not become one."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], norm: type[nn.BatchNorm2d] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(3, 4, 3), norm(4), nn.BatchNorm2d(4)
        self._how = forward
        self.kept: Any = None

    def forward(self, x: Tensor) -> Any:
        return self._how(self, x)


def keep(self: Peek, x: Tensor) -> Tensor:
    self.kept = self.conv(x)
    return self.norm(self.kept)


def by_brightness(self: Peek, x: Tensor) -> Tensor:
    y = self.conv(x)
    return self.norm(y) if float(x.detach().abs().sum()) > 0 else self.other(y)


def both(self: Peek, x: Tensor) -> Tensor:
    y = self.conv(x)
    return self.norm(y) + self.other(y)


def returned(wrap: Callable[[Tensor, Tensor], Any]) -> Callable[[Peek, Tensor], Any]:
    def forward(self: Peek, x: Tensor) -> Any:
        y = self.conv(x)
        return wrap(self.norm(y), y)

    return forward


LEAKS = {
    "read by a sum": returned(lambda z, y: z + y),
    "read by compiled code": returned(lambda z, y: z + doubled(y)),
    "read by two norms": both,
    "returned": returned(lambda z, y: (z, y)),
    "returned in a list in a dictionary": returned(lambda z, y: {"z": z, "all": [y]}),
    "returned in a dataclass": returned(Answer),
    "returned in an object": returned(lambda z, y: (z, Box(y))),
    "kept as an attribute": keep,
    "the layer runs twice": lambda self, x: self.norm(self.conv(x)) + self.conv(x + 1).relu(),
    "the norm runs twice": lambda self, x: self.norm(self.conv(x)) + self.norm(x[:, :1].expand(-1, 4, -1, -1)).sum(),
    "something between": lambda self, x: self.norm(self.conv(x).relu()),
    "changed in place": returned(lambda z, y: z + y.add_(1.0)),
    "its weight is read": lambda self, x: self.norm(self.conv(x)) + self.conv.weight.mean(),
    "its weight is used": lambda self, x: self.norm(self.conv(x)) + F.conv2d(x, self.conv.weight),
    "its bias is returned": lambda self, x: (self.norm(self.conv(x)), self.conv.bias),
    "the norm's weight is read": lambda self, x: self.norm(self.conv(x)) * self.norm.weight.mean(),
    "forward called by name": lambda self, x: self.norm(self.conv(x)) + self.conv.forward(x),
    "another branch, another norm": by_brightness,
}  # fmt: skip


@pytest.mark.parametrize("leak", LEAKS)
@torch.no_grad()
def test_what_is_seen_elsewhere_is_not_folded(leak: str) -> None:
    model = unlike_fresh(Peek(LEAKS[leak]))
    x = torch.randn(2, 3, 6, 6)
    inputs = (x, torch.zeros_like(x))
    wanted = [copy.deepcopy(tensors_in(model(value))) for value in inputs]
    model.kept = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConverterWarning)  # which of the two nets catches it is not the point here
        folded = fold_batch_norms(copy.deepcopy(model), torch.zeros_like(x))
    assert "norm" in norms_of(folded)
    for value, before in zip(inputs, wanted, strict=True):
        torch.testing.assert_close(tensors_in(folded(value)), before)


def test_a_fold_that_does_not_hold_is_undone_and_named() -> None:
    """Compiled code reads without being seen: only the outputs tell."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.first_norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.leaky, self.leaky_norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
            self.last, self.last_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.leaky(self.first_norm(self.first(x)).relu())
            return self.last_norm(self.last(self.leaky_norm(y).relu())) + doubled(y)

    model = unlike_fresh(Net())
    x = torch.randn(2, 3, 8, 8)
    wanted = model(x)
    with pytest.warns(ConverterWarning, match=r"leaky_norm: not folded into leaky, as the outputs would change by"):
        fold_batch_norms(model, x)
    assert norms_of(model) == ["leaky_norm"]
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-4)


def test_a_norm_of_another_kind_stays() -> None:
    model = unlike_fresh(Peek(lambda self, x: self.norm(self.conv(x)), ReluNorm))
    x = torch.randn(2, 3, 6, 6)
    wanted = model(x)
    assert isinstance(fold_batch_norms(model, x).norm, ReluNorm)
    torch.testing.assert_close(model(x), wanted)


class Flat(nn.Module):
    """Norms on an axis that is not the layer's, of the same length."""

    def __init__(self, norm: nn.Module, *shape: int) -> None:
        super().__init__()
        self.dense, self.norm, self.shape = nn.Linear(8, 8), norm, shape

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.dense(x))


@pytest.mark.parametrize(("norm", "shape"), [(nn.BatchNorm1d(8), (2, 8, 8)), (nn.BatchNorm2d(8), (2, 8, 8, 8))])
def test_a_norm_on_another_axis_stays(norm: nn.Module, shape: tuple[int, ...]) -> None:
    model = unlike_fresh(Flat(norm))
    x = torch.randn(shape)
    wanted = model(x)
    assert norms_of(fold_batch_norms(model, x)) == ["norm"]
    torch.testing.assert_close(model(x), wanted)


@pytest.mark.parametrize("where", ["conv", "norm"])
def test_hooks_are_not_lost(where: str) -> None:
    model = unlike_fresh(Peek(lambda self, x: self.norm(self.conv(x))))
    getattr(model, where).register_forward_hook(lambda _module, _inputs, output: output + 1)
    assert "norm" in norms_of(fold_batch_norms(model, torch.randn(1, 3, 6, 6)))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_every_plain_pair_folds_at_every_call(bias: bool, affine: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(3 if not i else 6, 6, 3, padding=1, bias=bias) for i in range(8))
            self.norms = nn.ModuleList(nn.BatchNorm2d(6, affine=affine) for _ in range(8))
            self.dense, self.last = nn.Linear(6, 5, bias=bias), nn.BatchNorm1d(5, affine=affine)

        def forward(self, x: Tensor) -> Tensor:
            for conv, norm in zip(self.convs, self.norms, strict=True):
                y = conv(x)
                assert y.shape[1] == y.size(1) == 6  # looking at a shape is not reading
                x = norm(y).relu() + (x if x.shape[1] == 6 else 0)
            return self.last(self.dense(x.mean((2, 3))))

    model = unlike_fresh(Net())
    x = torch.randn(4, 3, 9, 9)
    for _ in range(3):
        folded = fold_batch_norms(copy.deepcopy(model), x)
        assert norms_of(folded) == []
        torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "stay"), [("resnet18", 0), ("mobilenet_v2", 0), ("shufflenet_v2_x0_5", 0), ("densenet121", 62)]
)
def test_every_norm_of_torchvisions_networks_that_can_be_folded_is(name: str, stay: int) -> None:
    from torchvision.models import get_model

    model = get_model(name, weights=None).eval()
    assert len(norms_of(fold_batch_norms(model, torch.randn(1, 3, 64, 64)))) == stay


def test_dense_layers_fold_too_and_control_flow_is_no_obstacle() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.norm = nn.Linear(5, 7), nn.BatchNorm1d(7)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.dense(x))
            return y if float(y.detach().sum()) > 0 else -y

    model = unlike_fresh(Branching())
    x = torch.randn(4, 5)
    folded = fold_batch_norms(copy.deepcopy(model), x)
    assert isinstance(folded.norm, nn.Identity)
    torch.testing.assert_close(folded(x), model(x))


def test_training_mode_is_refused() -> None:
    with pytest.raises(ModelError, match=r"training mode; call model\.eval\(\)"):
        fold_batch_norms(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train(), torch.zeros(1, 3, 8, 8))
