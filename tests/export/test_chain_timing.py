from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch.nn import functional

from dprp.export import ExportError, PlainLayer, chain_timing
from dprp.export.chain_graph import chain_model
from dprp.export.chain_timing import chain_us, time_chains
from dprp.export.plain_layer import check_chain
from dprp.export.profiling import Kernel, Run

DENSE = PlainLayer("conv2d", 16, 32, (3, 3), (2, 2), (1, 1, 1, 1), height=9, width=7)
PAIR = (
    PlainLayer("conv2d", 16, 8, (3, 1), (2, 1), (1, 0, 0, 0), (2, 1), bias=False, height=9, width=7),
    PlainLayer("conv2d", 8, 32, (1, 3), (1, 2), (0, 0, 1, 2), height=3, width=7),
)
GROUPED = (replace(DENSE, groups=4), replace(DENSE, inputs=32, groups=32, stride=(1, 1), height=5, width=4))
IMAGE = (PlainLayer("conv2d", 3, 8, (7, 7), (2, 2), (3, 3, 3, 3), bias=False, height=20, width=20),)
ROW = (PlainLayer("linear", 24, 6, bias=False), PlainLayer("linear", 6, 10))
ROWS = (PlainLayer("linear", 24, 6, bias=False, width=5), PlainLayer("linear", 6, 10, width=5))
CHAINS = {
    "dense": (DENSE,),
    "pair": PAIR,
    "grouped": GROUPED,
    "image": IMAGE,
    "row": ROW,
    "rows": ROWS,
    "odd rank": (PlainLayer("conv2d", 16, 7, height=6, width=6), PlainLayer("conv2d", 7, 16, height=6, width=6)),
}


def torch_result(model: onnx.ModelProto, chain: tuple[PlainLayer, ...], x: torch.Tensor) -> torch.Tensor:
    """What the layers and their neighbours compute from the weights in the file, by way of torch."""
    weights = {entry.name: torch.from_numpy(numpy_helper.to_array(entry).copy()) for entry in model.graph.initializer}
    if "before.weight" in weights:
        x = functional.conv2d(x, weights["before.weight"])
    for index, layer in enumerate(chain):
        weight, bias = weights[f"layer{index}.weight"], weights.get(f"layer{index}.bias")
        assert (bias is not None) == layer.bias
        if layer.kind == "linear":
            x = functional.linear(x, weight if layer.width == 1 else weight.T, bias)
            continue
        assert x.shape[2:] == (layer.height, layer.width)
        top, bottom, left, right = layer.padding
        padded = functional.pad(x, (left, right, top, bottom))
        x = functional.conv2d(padded, weight, bias, stride=layer.stride, dilation=layer.dilation, groups=layer.groups)
        assert x.shape[2:] == layer.output_map
    return functional.conv2d(x, weights["after.weight"]) if "after.weight" in weights else x


@pytest.mark.parametrize("name", CHAINS)
def test_graph_computes_what_torch_computes(name: str) -> None:
    chain = CHAINS[name]
    check_chain(chain)
    model = chain_model(chain)
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal(session.get_inputs()[0].shape).astype(np.float32)
    (result,) = session.run(None, {"input": x})
    np.testing.assert_allclose(result, torch_result(model, chain, torch.from_numpy(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("dense", ["before", "layer0", "after"]),
        ("pair", ["before", "layer0", "layer1", "after"]),
        ("image", ["layer0", "after"]),
        ("row", ["layer0", "layer1"]),
        ("rows", ["layer0", "layer1.product", "layer1"]),
    ],
)
def test_graph_has_thin_neighbours_where_a_network_has_some(name: str, nodes: list[str]) -> None:
    assert [node.name for node in chain_model(CHAINS[name]).graph.node] == nodes


def test_every_kind_of_chain_is_timed() -> None:
    turns = []
    times_ms = time_chains(list(CHAINS.values()), 1, lambda: turns.append(1))
    assert set(times_ms) == set(CHAINS.values())
    assert all(0 <= time_ms < math.inf for time_ms in times_ms.values())
    assert len(turns) == 3 * len(CHAINS)


def test_each_chain_gets_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through shuffling, grouping and turns, on a machine where a layer takes its weights in microseconds."""

    class Clockwork:
        def __init__(self, model: bytes, *_: object) -> None:
            graph = onnx.load_from_string(model).graph
            weights = {entry.name: math.prod(entry.dims) for entry in graph.initializer}
            self.run_once = Run(
                tuple(Kernel(node.name, node.op_type, max(weights[name] for name in node.input if name in weights))
                      for node in graph.node),
                0.0,
            )  # fmt: skip
            self.runs = 0

        def run(self) -> None:
            self.runs += 1

        def finish(self) -> list[Run]:
            return [self.run_once] * self.runs

    monkeypatch.setattr(chain_timing, "ProfiledSession", Clockwork)
    monkeypatch.setattr(chain_timing, "profiler_cost_us", lambda *_: 0.0)
    chains = [(replace(DENSE, outputs=8 * n),) for n in range(1, 60)]
    times_ms = time_chains(chains, 1, lambda: None)
    assert times_ms == {chain: pytest.approx(chain[0].weights / 1e3) for chain in chains}


def test_company_runs_along_and_is_not_reported() -> None:
    turns = []
    times_ms = time_chains([ROW], 1, lambda: turns.append(1), [PAIR, (DENSE,), IMAGE])
    assert set(times_ms) == {ROW}
    assert len(turns) == 3


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    time_chains([ROW], 1, lambda: None)
    assert not list(tmp_path.iterdir())


def test_a_chain_pays_for_what_runs_between_its_neighbours() -> None:
    """Reordering inside and around a factor that the blocked layout does not take, and not the graph's own ends."""
    kernels = [
        Kernel("ReorderInput", "ReorderInput", 1000),
        Kernel("before_nchwc", "Conv", 1000),
        Kernel("layer0_nchwc", "Conv", 50),
        Kernel("ReorderOutput", "ReorderOutput", 7),
        Kernel("layer1", "Conv", 40),
        Kernel("ReorderInput_token_1", "ReorderInput", 9),
        Kernel("after_nchwc", "Conv", 1000),
        Kernel("ReorderOutput_token_2", "ReorderOutput", 1000),
    ]
    assert chain_us(kernels, PAIR, 0.0) == 106
    assert chain_us(kernels, PAIR, 2.5) == 96
    assert chain_us(kernels, PAIR, 500.0) == 0
    assert chain_us(kernels[2:], IMAGE, 0.0) == 106
    assert chain_us([Kernel("layer0", "Gemm", 5), Kernel("layer1", "Gemm", 6)], ROW, 0.0) == 11


def test_profiles_that_tell_nothing_are_refused() -> None:
    with pytest.raises(ExportError, match=r"profiled layer0, from which its time cannot be told\. Plan by MACs"):
        chain_us([Kernel("layer0", "Conv", 5)], IMAGE, 0.0)


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ((), r"a chain of no layers"),
        ((replace(DENSE, kind="conv1d"),), r"kind 'conv1d' is not known\. Give 'conv2d' or 'linear'"),
        ((replace(DENSE, outputs=0),), r"a size is below 1"),
        ((replace(DENSE, padding=(0, 0, 0, -1)),), r"a padding below 0"),
        ((replace(DENSE, groups=5),), r"5 groups do not divide 16 inputs and 32 outputs"),
        ((replace(DENSE, dilation=(6, 1)),), r"its output map would be 0x4"),
        ((replace(ROW[0], kernel=(3, 3), width=9),), r"output map would be -1x7"),
        ((replace(ROW[0], groups=2),), r"a linear layer has height 1, one group"),
        ((PAIR[0], replace(PAIR[1], inputs=16)), r"conv2d 16->32 .*: cannot follow a layer that gives .*8, 3, 7\)"),
        ((PAIR[0], replace(PAIR[1], width=9)), r"cannot follow"),
        ((replace(DENSE, height=1, width=1), PlainLayer("linear", 32, 10)), r"cannot follow"),
    ],
)
def test_chains_that_cannot_be_are_refused(chain: tuple[PlainLayer, ...], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        check_chain(chain)


def test_names_tell_layers_apart() -> None:
    """The name is the key on disk: an attribute that it leaves out would mix up two layers' times."""
    changes = {
        "kind": "linear",
        "inputs": 8,
        "outputs": 8,
        "kernel": (1, 3),
        "stride": (1, 2),
        "padding": (1, 1, 1, 2),
        "dilation": (1, 2),
        "groups": 2,
        "bias": False,
        "height": 8,
        "width": 8,
    }
    assert set(changes) == set(PlainLayer.__dataclass_fields__)
    names = {str(replace(DENSE, **{name: value})) for name, value in changes.items()}
    assert len(names | {str(DENSE)}) == 1 + len(changes)
    assert str(ROWS[0]) != str(ROW[0]) != str(replace(ROW[0], bias=True))
