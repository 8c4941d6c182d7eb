"""Sequential reconstruction: each layer makes up for the errors of those before it.

With x a layer's input in the dense network and z its input behind the layers converted so far, the full map is
fitted first, A = M (E[x z^T] + ridge I) (E[z z^T] + ridge I)^-1, and then cut to its rank in the metric of z and in
that of what the answers feel of its output; layers that stay dense take A as it is. The ridge is the best one on a
third of the images that the others did not see; without data, or where nothing before has changed, A = M. Where the
first factor sees a part of the window only, the second is fitted once more, to the layer's whole output. Where a bias
or a norm can take up the mean of the output, the fit is to what varies around it.

Both networks run as one: a batch holds its images twice, every layer computes the dense answer for the first half
and its replacement's for the second, and makes its replacement when the images first reach it. One
forward pass converts the whole network, in the order in which it runs, across branches and residual joins. Batches
walk in step, so that a layer learns from many images while no more than their way to its input is in memory.

Source: asymmetric reconstruction, Zhang et al. (2015), with the whitened cut of `decompose`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..allocator import give_back
from ..analysis.batch_axis import batch_axes
from ..analysis.in_step import InStep, OtherWaysError, run_in_step
from ..analysis.inputs import Samples, joined
from ..analysis.memory import images_at_once, images_in_memory, images_in_step
from ..analysis.norm_pairs import norm_pairs
from ..analysis.output_metrics import OutputMetrics
from ..analysis.probe import evaluating
from ..analysis.running import copied
from ..analysis.surveying import survey
from ..errors import ConverterWarning, ModelError
from ..lowrank.layers import LowRank
from ..lowrank.shapes import Plain
from ..planning.plan import Plan
from .twins import Cut, Refit, Twin
from .views import several_views
from .walking import Walk
from .windows import Batch

_FEWEST_TO_SPLIT = 12
"""Images below which none is spared to choose a ridge by."""


class Reconstruction(NamedTuple):
    """What takes the place of a plan's layers.

    Attributes:
        layers: by name.
        shifts: (outputs,) by the name of a norm: what its input lacks in the mean, for want of a bias before it.
        refits: by name, what a layer that stays dense becomes to make up for those before it.
    """

    layers: dict[str, LowRank]
    shifts: dict[str, Tensor]
    refits: dict[str, Plain]


@torch.no_grad()
def reconstruct(
    model: nn.Module,
    plan: Plan,
    images: Samples,
    *,
    ridge: float,
    metrics: OutputMetrics | None = None,
    refit: bool = True,
    views: int = 1,
    on_layer: Callable[[str], None] | None = None,
) -> Reconstruction:
    """Makes the low-rank layers of a plan, each fitted behind those before it.

    Args:
        model: the dense network; untouched.
        plan: forms and ranks; already checked against the model.
        images: (N, ...) calibration inputs; each layer learns from as many as may wait before it.
        ridge: of the inputs' metric in which ranks are cut, relative to the mean of a moment's diagonal.
        metrics: of the outputs; without one, every output of a layer counts the same.
        refit: whether layers that stay dense make up for those before them, too.
        views: of each image that they learn from: itself, and crops of it.
        on_layer: is told the name of each layer when it is made.

    Raises:
        ModelError: the model cannot take the images, a layer never ran or cannot be fitted; names it.
    """
    layers = survey(model, images[:1], pairs=False)
    shapes = [layer.shape for layer in layers]
    images = images[: max(1, images_in_step(shapes, views * len(images)) // views)]
    staying = {
        layer.name: layer.shape
        for layer in layers
        if refit
        and layer.plain
        and layer.name not in plan.factored
        and layer.shape is not None
        and len(layer.shape.calls) == 1
    }
    axes = batch_axes(model, [*plan.factored, *staying], images)
    norms = {pair.layer: pair.norm for pair in norm_pairs(model, [images[:2]])}

    def twins_after(batches: list[Batch], parts: list[Samples]) -> list[Twin]:
        walk = Walk(InStep(len(batches)), batches)
        walker = copied(model)
        by_name = dict(walker.named_modules(remove_duplicate=False))
        twins: dict[nn.Module, Twin] = {}
        for name in (*plan.factored, *staying):
            dense = by_name[name]
            assert isinstance(dense, Plain)
            wanted = plan.factored.get(name)
            shape = staying[name] if wanted is None else wanted.shape
            assert shape is not None
            where = (name, dense, shape, walk, axes[name], name in norms, ridge, on_layer)
            if wanted is None:
                twins[dense] = Refit(*where)
            else:
                metric = (metrics or {}).get(name)
                twins[dense] = Cut(*where, form=wanted.form, rank=wanted.rank, metric=metric)
        for name, module in by_name.items():
            if module in twins:
                parent, _, child = name.rpartition(".")
                setattr(by_name[parent], child, twins[module])
        give_back()
        with evaluating(walker):
            run_in_step(walker, parts, walk.step)
        return list(twins.values())

    try:
        twins = twins_after(*_batches(several_views(images, views), images_at_once(shapes)))
    except OtherWaysError:  # one batch takes one way, and none is spared to judge
        some = images[: images_in_memory(shapes, len(images), networks=2)]
        twins = twins_after([Batch(0, len(some), judges=False)], [joined([some, some])])
    made = Reconstruction({}, {}, {})
    for twin in twins:
        if twin.shift is not None:
            made.shifts[norms[twin.name]] = twin.shift
        if isinstance(twin.made, LowRank):
            made.layers[twin.name] = twin.made
        elif twin.made is not None:
            made.refits[twin.name] = twin.made
        elif twin.name in plan.factored:
            raise ModelError(f"{twin.name}: did not run on the calibration images; keep it dense")
    alone = [twin.name for twin in twins if twin.axis is None and twin.name in plan.factored]
    if alone:
        warnings.warn(
            f"{', '.join(alone)}: fitted to the weights alone, as the input does not carry the calibration images "
            "one beside the other",
            ConverterWarning,
            stacklevel=3,
        )
    return made


def _batches(views: Sequence[Samples], most: int) -> tuple[list[Batch], list[Samples]]:
    """Batches of at most so many images, and what each runs on; every third image, judges, in others.

    All views of an image are on one side.
    """
    thirds = [joined([view[start::3] for view in views]) for start in range(3)]
    ordered = joined(thirds)
    judges = len(thirds[-1]) if len(views[0]) >= _FEWEST_TO_SPLIT else 0
    batches = []
    for first, end in ((0, len(ordered) - judges), (len(ordered) - judges, len(ordered))):
        batches += [Batch(start, min(most, end - start), first > 0) for start in range(first, end, most)]
    some = [ordered[batch.start : batch.start + batch.images] for batch in batches]
    return batches, [joined([part, part]) for part in some]
