"""The command line hands each verb's function what it takes."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest

from dprp.converter.cli import verbs

VERBS = ["compress", "demo", "survey", "plan", "convert", "finetune", "evaluate", "export", "benchmark", "env"]

# Times do not depend on a seed; it is there so that every verb has one.
DROPPED = {"benchmark": {"seed"}}
NOT_ASKED = {"quiet", "made_by", "recipe"}


@pytest.mark.parametrize("name", VERBS)
def test_each_option_has_its_parameter_and_the_other_way_round(name: str) -> None:
    options = inspect.signature(getattr(verbs, name)).parameters
    takes = inspect.signature(getattr(import_module(f"dprp.converter.cli.{name}"), name)).parameters
    assert set(options) - set(takes) == DROPPED.get(name, set())
    assert set(takes) - set(options) <= NOT_ASKED


@pytest.mark.parametrize("name", VERBS)
def test_defaults_are_the_functions_own(name: str) -> None:
    options = inspect.signature(getattr(verbs, name)).parameters
    takes = inspect.signature(getattr(import_module(f"dprp.converter.cli.{name}"), name)).parameters
    for key in set(options) & set(takes):
        ours, theirs = options[key].default, takes[key].default
        if inspect.Parameter.empty not in (ours, theirs):
            assert _text(getattr(ours, "value", ours)) == _text(theirs), key


def _text(value: object) -> str | None:
    return None if value in (None, ()) else str(value)
