"""Times of a network's layers, dense and factored, as ONNX Runtime takes them on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from ...export import LatencyTable, PlainLayer, time_network
from ..analysis.surveying import Survey
from ..lowrank.forms import Form
from ..lowrank.shapes import LayerShape
from ..planning.layer_times import LayerTimes, chains_to_time
from .exporting import export_network
from .network import Network

Chain = tuple[PlainLayer, ...]


def time_layers(
    network: Network, layers: Survey, *, rank_multiple: int | None, forms: Sequence[Form] = (), threads: int = 1
) -> LayerTimes:
    """Measures what a plan under a latency budget chooses from; what was measured before is read from disk.

    Args:
        network: dense.
        layers: its survey.
        rank_multiple: ranks are multiples of this; None as in `plan_ranks`.
        forms: that may be used, () for all.
        threads: of ONNX Runtime.

    Raises:
        BudgetError: the network has layers of a kind whose time cannot be foretold.
        ExportError: the network cannot be exported or run.
    """
    variants = chains_to_time(layers, rank_multiple, forms or tuple(Form))
    calls = {variant: _calls(shapes) for variant, shapes in variants.items()}
    table = LatencyTable(threads=threads).measure({chain for chains in calls.values() for chain in chains})
    layers_ms = {variant: sum(table[chain] for chain in chains) for variant, chains in calls.items()}
    with tempfile.TemporaryDirectory(prefix="dprp-") as folder:
        file = Path(folder) / "dense.onnx"
        export_network(network, file, network.example(2))
        network_time = time_network(file, threads=threads)
    dense_ms = sum(ms for (_, form, _), ms in layers_ms.items() if form is None)
    # A table may be days old, and the machine slower or faster today: only ratios of its times are used.
    scale = network_time.layers_ms / dense_ms if dense_ms else 1.0
    return LayerTimes(network_time.total_ms, {variant: ms * scale for variant, ms in layers_ms.items()})


def _calls(shapes: tuple[LayerShape, ...]) -> list[Chain]:
    """One chain for each call of a layer."""
    return [tuple(_plain(shape, index) for shape in shapes) for index in range(len(shapes[0].calls))]


def _plain(shape: LayerShape, call: int) -> PlainLayer:
    here = shape.calls[call]
    return PlainLayer(
        shape.kind,
        shape.inputs,
        shape.outputs,
        _pair(shape.kernel),
        _pair(shape.stride),
        (*shape.padding[0], *shape.padding[1]),
        _pair(shape.dilation),
        shape.groups,
        shape.bias,
        *here.size_in,
    )


def _pair(sizes: tuple[int, ...]) -> tuple[int, int]:
    height, width = sizes
    return height, width
