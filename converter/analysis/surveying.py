"""Survey: what is in a network, what of it can be factored, and why the rest cannot.

One probe forward in eval mode tells which modules really run and on which maps; nothing is traced, so any Python
in `forward` is fine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..errors import ModelError
from ..lowrank.costs import break_even_rank
from ..lowrank.forms import Form, forms_for, full_rank
from ..lowrank.layers import LowRank
from ..lowrank.shapes import KINDS, LayerShape, Plain, shape_of
from ..tables import table
from .inputs import Example, as_samples
from .opening import opened
from .probe import COUNTED, Call, probe

_OLD_NORMS: dict[type, str] = {
    WeightNorm: "torch.nn.utils.remove_weight_norm",
    SpectralNorm: "torch.nn.utils.remove_spectral_norm",
}
"""Hooks that compute a weight anew in each call, and what takes them off."""

OUTSIDE = "(outside of layers)"
"""Instead of a name, of what no layer computes."""


@dataclass(frozen=True)
class Layer:
    """One layer with weights, as found.

    Attributes:
        name: where it is; the first name when the module is reachable by several.
        kind: its class name.
        macs: multiply-adds of one sample's forward pass.
        params: its own parameters.
        shape: its geometry, or None for kinds that cannot be factored.
        reason: why it stays as it is, or None when it can be factored.
        weight: the tensor itself (not a copy), for planning; None when it cannot be factored.
        aliases: other names of the same module.
        plain: whether it computes what its shape says, with a weight of its own.
    """

    name: str
    kind: str
    macs: int
    params: int
    shape: LayerShape | None
    reason: str | None
    weight: Tensor | None = field(default=None, repr=False, compare=False)
    aliases: tuple[str, ...] = ()
    plain: bool = False

    @property
    def forms(self) -> dict[Form, int]:
        """Break-even rank of each form that saves anything."""
        if self.shape is None or self.reason is not None:
            return {}
        ranks = {form: break_even_rank(self.shape, form) for form in forms_for(self.shape)}
        return {form: rank for form, rank in ranks.items() if rank > 0}


@dataclass(frozen=True)
class Survey:
    """What `survey` found; iterating gives the layers, `print` a table.

    Attributes:
        layers: every convolution and dense layer, in the order in which they run; those that never run last.
        params: parameters of the whole network, normalisation included.
        macs: multiply-adds for one sample, those that no layer makes (attention's matrix products) included.
        input_shape: shape of the probe, without the batch.
    """

    layers: tuple[Layer, ...]
    params: int
    macs: int
    input_shape: tuple[int, ...]

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __str__(self) -> str:
        rows = [
            (
                layer.name,
                layer.kind,
                "" if layer.shape is None else _weight(layer.shape),
                f"{layer.params:,}",
                f"{layer.macs:,}",
                ", ".join(f"{form} {rank}/{_full(layer, form)}" for form, rank in layer.forms.items())
                or f"stays: {layer.reason}",
            )
            for layer in self
        ]
        head = ("layer", "kind", "weight", "params", "MACs", "break-even rank / full rank by form")
        total = ("total", "", "", f"{self.params:,}", f"{self.macs:,}", "params of all modules")
        return table(head, [*rows, total], right=(3, 4))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "input_shape": list(self.input_shape),
            "params": self.params,
            "macs": self.macs,
            "layers": [
                {
                    "name": layer.name,
                    "aliases": list(layer.aliases),
                    "kind": layer.kind,
                    "params": layer.params,
                    "macs": layer.macs,
                    "forms": {
                        form.value: {"break_even": rank, "full": _full(layer, form)}
                        for form, rank in layer.forms.items()
                    },
                    "reason": layer.reason,
                }
                for layer in self
            ],
        }


def _weight(shape: LayerShape) -> str:
    return " x ".join(str(n) for n in (shape.weight[:2] if shape.linear else shape.weight))


def _full(layer: Layer, form: Form) -> int:
    assert layer.shape is not None
    return full_rank(layer.shape, form)


def survey(model: nn.Module, example: Example) -> Survey:
    """Walks a network with one probe forward.

    Args:
        model: any module; neither its weights nor its mode are changed.
        example: (N, ...) one input batch, on the model's device; `Inputs` where the network takes several.

    Returns:
        Every layer with its shape, cost and forms, or the reason it stays.

    Raises:
        ModelError: the model is wrapped (DataParallel, compile), has lazy layers, or cannot take the example.
    """
    _refuse_wrappers(model)
    samples = as_samples(example)
    model = opened(model)
    names: defaultdict[nn.Module, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        names[module].append(name)
    found_out = probe(model, samples)
    calls = found_out.calls
    owners: defaultdict[int, set[nn.Module]] = defaultdict(set)
    for module in names:
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)].add(module)
    found = [m for m in names if isinstance(m, COUNTED)]
    order = {module: place for place, module in enumerate(calls)}
    found.sort(key=lambda module: order.get(module, len(order)))
    layers = []
    for module in found:
        shape = _shape(module, calls.get(module, []))
        sharers = {owner for p in module.parameters(recurse=False) for owner in owners[id(p)]} - {module}
        obstacle = _obstacle(module, shape, sharers, names)
        reason = _too_small(shape) if obstacle is None else obstacle
        weight = module.weight if reason is None else None
        layers.append(
            Layer(
                names[module][0],
                type(module).__name__,
                sum(call.macs for call in calls.get(module, [])),
                sum(p.numel() for p in module.parameters(recurse=False)),
                shape,
                reason,
                weight.detach() if isinstance(weight, Tensor) else None,
                tuple(names[module][1:]),
                obstacle is None,
            )
        )
    if found_out.outside:
        layers.append(Layer(OUTSIDE, "products", found_out.outside, 0, None, "no layer makes them"))
    return Survey(
        tuple(layers),
        sum(p.numel() for p in model.parameters()),
        sum(layer.macs for layer in layers),
        tuple(samples.shape[1:]),
    )


def _shape(module: nn.Module, calls: list[Call]) -> LayerShape | None:
    maps = tuple(m for call in calls for m in call.maps)
    if isinstance(module, LowRank):
        return module.shape.with_calls(maps)
    if isinstance(module, Plain):
        return shape_of(module).with_calls(maps)
    return None


def _obstacle(
    module: nn.Module,
    shape: LayerShape | None,
    sharers: set[nn.Module],
    names: dict[nn.Module, list[str]],
) -> str | None:
    if isinstance(module, LowRank):
        return f"already factored ({module.form}, rank {module.rank})"
    kind = type(module)
    if shape is None:
        return f"{kind.__name__} is not supported yet"
    if not shape.calls:
        return "its forward did not run in the probe"
    plain = KINDS[shape.kind]
    if any(
        getattr(kind, method, None) is not getattr(plain, method, None) for method in ("forward", "_conv_forward")
    ):
        return f"{kind.__name__} computes something else than {plain.__name__}"
    if parametrize.is_parametrized(module):
        remedy = 'torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")'
        return f"its weight is parametrized; fold it first, by {remedy}"
    for hook in module._forward_pre_hooks.values():
        if type(hook) in _OLD_NORMS:
            return f"its weight is computed by a hook; fold it first, by {_OLD_NORMS[type(hook)]}(layer)"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return "it has hooks that a replacement would lose; remove them first"
    if sharers:
        return f"its weight is tied to {names[next(iter(sharers))][0]}"
    return None


def _too_small(shape: LayerShape | None) -> str | None:
    if shape is None or any(break_even_rank(shape, form) for form in forms_for(shape)):
        return None
    return "too small: no rank makes it cheaper"


def _refuse_wrappers(model: nn.Module) -> None:
    remedies: tuple[tuple[Callable[[], bool], str], ...] = (
        (lambda: isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)), "model.module"),
        (lambda: hasattr(model, "_orig_mod"), "model._orig_mod"),
    )
    for wrapped, remedy in remedies:
        if wrapped():
            raise ModelError(f"the model is wrapped in {type(model).__name__}; pass {remedy} instead")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("the model is a TorchScript module, which cannot be rebuilt; pass the Python module")
    for name, module in model.named_modules():
        if any(_lazy(parameter) for parameter in module.parameters(recurse=False)):
            raise ModelError(
                f"{name}: is a {type(module).__name__} that has never run, and has no weight; run the model on an "
                "example, and load its checkpoint, first"
            )


def _lazy(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, nn.parameter.UninitializedParameter)
