"""Pairs of layers with nothing in between: found in a network, and put in as one layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..errors import ModelError, PlanError
from ..lowrank.plain import FusedPair
from ..lowrank.products import BatchNorm, Joined, Product, product_of, product_shape
from ..lowrank.shapes import Plain, shape_of
from .inputs import Samples
from .norm_pairs import norm_after
from .probe import evaluating
from .running import copied, run, same_noise
from .sole_readers import Reader, sole_readers

Products = Mapping[str, Product]
"""By the name of the second layer, whose place the product takes."""


def products_in(model: nn.Module, samples: Samples) -> dict[str, Product]:
    """Pairs of layers that are one narrow matrix: the second alone reads the first, or the norm that alone does.

    Args:
        model: runs, in eval mode; as it was afterwards.
        samples: what it runs on.

    Returns:
        No layer is in two of them. Without those in whose places a product would not run: where the network asks a
        layer for its sizes, say, or knows it by another name, too.
    """
    names = {module: name for name, module in model.named_modules()}
    fused = {layer for module in names if isinstance(module, FusedPair) for layer in module.children()}
    readers = sole_readers(model, [samples])
    found: dict[str, Product] = {}
    taken: set[nn.Module] = set()
    for first, name in names.items():
        pair = _pair(first, readers)
        if pair is None or {first, pair[1]} & (taken | fused):
            continue
        norm, second = pair
        taken |= {first, second}
        found[names[second]] = Product(name, None if norm is None else names[norm])
    if not found or _runs(model, found, samples):
        return found
    return {name: product for name, product in found.items() if _runs(model, {name: product}, samples)}


def joined(model: nn.Module, products: Products) -> nn.Module:
    """A network with the same function, in which these pairs are one layer each; the model itself without pairs.

    Args:
        model: untouched; its other weights are shared.

    Raises:
        PlanError: the model has no such pair.
    """
    if not products:
        return model
    twin = copied(model, share=True)
    join_in_place(twin, products)
    return twin


def join_in_place(model: nn.Module, products: Products) -> None:
    """Joins pairs of a network itself, as `joined`; checks all of them first."""
    by_name = dict(model.named_modules())
    made: dict[str, nn.Module] = {}
    for name, product in products.items():
        first, second = by_name.get(product.first), by_name.get(name)
        norm = None if product.norm is None else by_name.get(product.norm)
        if (
            not isinstance(first, Plain)
            or not isinstance(second, Plain)
            or not (norm is None if product.norm is None else _evaluates(norm, shape_of(first).outputs))
            or product_shape(shape_of(first), shape_of(second)) is None
        ):
            raise PlanError(f"{name}: is no product with {product.first} here; make the plan from this model")
        assert norm is None or isinstance(norm, BatchNorm)
        parts = [first, second] if norm is None else [first, norm, second]
        params = sum(parameter.numel() for part in parts for parameter in part.parameters())
        made |= {name: product_of(first, norm, second), product.first: Joined(params, shape_of(first).outputs)}
        if product.norm is not None:
            made[product.norm] = Joined()
    for name, module in made.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module)


def place_of(model: nn.Module, product: Product) -> Joined:
    """What a network has in the place of the first layer of one of its products."""
    place = model.get_submodule(product.first)
    assert isinstance(place, Joined)
    return place


def _pair(first: nn.Module, readers: Mapping[nn.Module, Reader]) -> tuple[BatchNorm | None, Plain] | None:
    """The norm and the layer that follow a layer, where the two layers are one narrow matrix."""
    if not isinstance(first, Plain) or first not in readers:
        return None
    norm = norm_after(first, readers[first])
    reader = readers.get(first if norm is None else norm)
    if reader is None or not isinstance(second := reader.module, Plain) or type(second) is not type(first):
        return None
    alike = second.weight.requires_grad == first.weight.requires_grad and second.weight.dtype == first.weight.dtype
    if not alike or product_shape(shape_of(first), shape_of(second)) is None:
        return None
    return norm, second


def _evaluates(norm: nn.Module | None, channels: int) -> bool:
    """Whether it is a norm of so many channels that does not look at the batch."""
    return isinstance(norm, BatchNorm) and norm.num_features == channels and norm.running_mean is not None


def _runs(model: nn.Module, products: Products, samples: Samples) -> bool:
    """Whether the network runs with products in their places, and runs them."""
    twin = joined(model, products)
    places = [*products, *(product.first for product in products.values())]
    ran: set[str] = set()
    for name in places:
        twin.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.add(name))
    try:
        with evaluating(twin), torch.no_grad(), same_noise():
            run(twin, samples)
    except ModelError:
        return False
    return ran == {*places}
