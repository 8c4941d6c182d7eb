"""Survey: what is in a network, what of it can be factored, and why the rest cannot.

One probe forward in eval mode tells which modules really run and on which maps; nothing is traced, so any Python
in `forward` is fine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from ..lowrank.costs import Unit, break_even_rank, dense_cost
from ..lowrank.forms import Form, forms_for, full_rank
from ..lowrank.layers import LowRank
from ..lowrank.products import Product
from ..lowrank.shapes import LayerShape, Plain, shape_of
from ..tables import table
from .inputs import Example, as_samples
from .obstacles import obstacle_of, refuse, too_small
from .opening import layers_inside, opened
from .probe import COUNTED, Call, probe
from .products import Products, joined, place_of, products_in

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
        product: the layer before it that is one matrix with it; kind apart, all of the above is of both.
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
    product: Product | None = None

    @property
    def forms(self) -> dict[Form, int]:
        """Break-even rank of each form that saves anything."""
        return {form: rank for form, rank in self._ranks().items() if rank > 0}

    @property
    def dear(self) -> tuple[Form, ...]:
        """Forms that cost more than the layer at every rank, as those that mix a depthwise layer's channels do."""
        return tuple(form for form, rank in self._ranks().items() if rank == 0)

    def _ranks(self) -> dict[Form, int]:
        if self.shape is None or self.reason is not None:
            return {}
        return {form: break_even_rank(self.shape, form) for form in forms_for(self.shape)}


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

    @property
    def products(self) -> Products:
        """The pairs of layers that are listed as one, by the second's name."""
        return {layer.name: layer.product for layer in self if layer.product is not None}

    def __str__(self) -> str:
        rows = [
            (
                layer.name,
                layer.kind,
                "" if layer.shape is None else _weight(layer.shape),
                f"{layer.params:,}",
                f"{layer.macs:,}",
                _choices(layer),
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
                    "product": None if layer.product is None else layer.product._asdict(),
                    "dear": [form.value for form in layer.dear],
                    "reason": layer.reason,
                }
                for layer in self
            ],
        }


def _choices(layer: Layer) -> str:
    if layer.reason is not None:
        return f"stays: {layer.reason}"
    found = ", ".join(f"{form} {rank}/{_full(layer, form)}" for form, rank in layer.forms.items())
    if layer.product is not None:
        return f"{found} with {layer.product.first}"
    return f"{found}; {', '.join(layer.dear)}: no rank is cheaper" if layer.dear else found


def _weight(shape: LayerShape) -> str:
    return " x ".join(str(n) for n in (shape.weight[:2] if shape.linear else shape.weight))


def _full(layer: Layer, form: Form) -> int:
    assert layer.shape is not None
    return full_rank(layer.shape, form)


def survey(model: nn.Module, example: Example, *, pairs: bool = True) -> Survey:
    """Walks a network with one probe forward.

    Args:
        model: any module; neither its weights nor its mode are changed.
        example: (N, ...) one input batch, on the model's device; `Inputs` where the network takes several.
        pairs: list two layers with nothing but a norm in between as one, which has fewer ranks than either.

    Returns:
        Every layer with its shape, cost and forms, or the reason it stays.

    Raises:
        ModelError: the model is wrapped (DataParallel, compile), has lazy layers, or cannot take the example.
    """
    refuse(model)
    samples = as_samples(example)
    model = opened(model, layers_inside(model, samples))
    total = sum(p.numel() for p in model.parameters())
    products = products_in(model, samples) if pairs else {}
    between = {name: _channels(model, product.first) for name, product in products.items()}
    model = joined(model, products)
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
        name, *aliases = names[module]
        product = products.get(name)
        shape = replace(_shape(module, calls.get(module, [])), between=between.get(name))
        macs = sum(call.macs for call in calls.get(module, []))
        params = sum(p.numel() for p in module.parameters(recurse=False))
        if product is not None:
            macs, params = dense_cost(shape, Unit.MACS), place_of(model, product).params
        sharers = {owner for p in module.parameters(recurse=False) for owner in owners[id(p)]} - {module}
        used = any(id(parameter) in found_out.read for parameter in module.parameters(recurse=False))
        obstacle = obstacle_of(module, shape, {names[owner][0] for owner in sharers}, used=used)
        reason = too_small(shape) if obstacle is None else obstacle
        weight = module.weight if reason is None else None
        layers.append(
            Layer(
                name,
                type(module).__name__,
                macs,
                params,
                shape,
                reason,
                weight.detach() if isinstance(weight, Tensor) else None,
                tuple(aliases),
                obstacle is None,
                product,
            )
        )
    if found_out.outside:
        layers.append(Layer(OUTSIDE, "products", found_out.outside, 0, None, "no layer makes them"))
    return Survey(
        tuple(layers),
        total,
        sum(layer.macs for layer in layers),
        tuple(samples.shape[1:]),
    )


def _channels(model: nn.Module, name: str) -> int:
    """That a layer gives."""
    layer = model.get_submodule(name)
    assert isinstance(layer, Plain)
    return shape_of(layer).outputs


def _shape(module: nn.Module, calls: list[Call]) -> LayerShape:
    assert isinstance(module, COUNTED)
    shape = module.shape if isinstance(module, LowRank) else shape_of(module)
    return shape.with_calls(tuple(one for call in calls for one in call.maps))
