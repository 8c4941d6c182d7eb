"""Plan files: how they read, and what they refuse."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from dprp.converter import Form, MacBudget, Plan, PlanError, RankRatio, Unit, plan_ranks, survey

EXAMPLE = torch.zeros(1, 3, 16, 16)


def test_json_both_ways(residual: nn.Module) -> None:
    plan = plan_ranks(survey(residual, EXAMPLE), MacBudget(0.6), rank_multiple=2)
    assert Plan.from_json(plan.to_json()) == plan


def test_an_edited_plan_counts_anew(residual: nn.Module) -> None:
    plan = plan_ranks(survey(residual, EXAMPLE), MacBudget(0.6), rank_multiple=2)
    document = json.loads(plan.to_json())
    name, layer = next((n, found) for n, found in enumerate(document["layers"]) if found["form"])
    layer["rank"] = 1
    edited = Plan.from_json(json.dumps(document))
    assert edited.layers[name].rank == 1
    assert edited.total(Unit.MACS) < plan.total(Unit.MACS)
    layer["form"] = layer["rank"] = None
    assert Plan.from_json(json.dumps(document)).layers[name].reason == "by hand"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 10**6}, r"stem: rank 1000000 is not in 1\.\.\d+ \(weight 24 x 3 x 3 x 3, form \w+\); lower it"),
        ({"rank": 0}, r"stem: rank 0 is not in"),
        ({"rank": True}, r"stem: rank True is not in"),
        ({"rank": None}, r"stem: form '\w+' with rank None; give both, or null for both"),
        ({"form": "tucker"}, r"stem: form 'tucker' is not one of channel, pointwise, spatial; choose"),
        ({"shape": None}, r"stem: this kind of layer cannot be factored; set form and rank to null"),
        ({"shape": {"kind": "conv2d"}}, r"a layer's shape has no 'inputs'"),
        ({"params": "many"}, r"the plan does not read \(stem: params is 'many'; a whole number from 0 to"),
        ({"params": -1}, r"stem: params is -1; a whole number"),
        ({"macs": 2**70}, r"stem: macs is a number beyond all bounds"),
        ({"macs": 1.5}, r"stem: macs is 1\.5; a whole number"),
        ({"error": float("nan")}, r"error is nan; a finite number of at least 0 belongs there"),
        ({"dense_ms": 1e999}, r"dense_ms is inf; a finite number"),
        ({"ms": "1"}, r"ms is '1'; a finite number"),
        ({"name": "x" * 1001}, r"a layer's name is 'x{78}…; at most 1,000 printable characters"),
        ({"name": "\x1b[31m"}, r"a layer's name is .*; at most 1,000 printable characters"),
        ({"name": "down"}, r"down: the plan lists this layer twice; keep one entry"),
        ({"reason": ["no"], "form": None, "rank": None}, r"stem: reason is a list of 1; at most 1,000 printable"),
        ({"form": "x" * 1000}, r"stem: form 'x{198}… is not one of"),
        ({"rank": [[]]}, r"stem: rank \[\[\]\] is not in"),
    ],
)
def test_what_a_plan_refuses(residual: nn.Module, change: dict[str, object], message: str) -> None:
    document = json.loads(plan_ranks(survey(residual, EXAMPLE), RankRatio(1.0), forms=[Form.SPATIAL]).to_json())
    next(layer for layer in document["layers"] if layer["name"] == "stem").update(change)
    with pytest.raises(PlanError, match=message):
        Plan.from_json(json.dumps(document))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "the plan is not JSON"),
        ("[]", "the JSON is not a plan"),
        ('{"dprp_plan": 99}', "the plan has format 99, this dprp reads 1; upgrade dprp"),
        ('{"dprp_plan": 1}', "the plan has no 'layers'"),
    ],
)
def test_what_is_no_plan(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Plan.from_json(text)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("inputs", 0, "inputs is 0; a whole number from 1 to"),
        ("kernel", [3], "kernel has 1 numbers; 2 belong there"),
        ("kernel", 3, "kernel is 3; a list of at most 2"),
        ("stride", [0, 1], "stride is 0; a whole number from 1 to"),
        ("padding", [0, 0, 0, -1], "padding is -1; a whole number from 0 to"),
        ("groups", 7, "in 7 groups, which do not divide them"),
        ("calls", [[1, 2, 3]], "a call has 3 numbers; 4 belong there"),
        ("calls", [[1, 2, 3, 2**40]], r"a call is 1099511627776; a whole number from 0 to"),
        ("calls", [[1] * 4] * 10_001, "calls is a list of 10,001; a list of at most 10,000"),
    ],
)
def test_shapes_that_cannot_be(residual: nn.Module, field: str, value: object, message: str) -> None:
    document = json.loads(plan_ranks(survey(residual, EXAMPLE), RankRatio(0.5)).to_json())
    next(layer for layer in document["layers"] if layer["name"] == "stem")["shape"][field] = value
    with pytest.raises(PlanError, match=message):
        Plan.from_json(json.dumps(document))
