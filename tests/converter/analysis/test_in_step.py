"""Batches in step: each waits for the others at every meeting, and none is left behind."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dprp.converter import ModelError
from dprp.converter.analysis.in_step import InStep, OtherWaysError, run_in_step


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 7), st.integers(0, 5))
def test_all_bring_something_and_all_are_told_the_same(count: int, meetings: int) -> None:
    step, told, order = InStep(count), [[] for _ in range(count)], []  # type: ignore[var-annotated]

    def walk(place: int) -> None:
        assert step.place == place
        assert not torch.is_grad_enabled() or count == 1
        for number in range(meetings):
            order.append((number, place))
            told[place].append(step.meet(number, (place, number), tuple))

    step.run(walk)
    expected = [tuple((place, number) for place in range(count)) for number in range(meetings)]
    assert told == [expected] * count
    # One after the other from meeting to meeting, always in the same order.
    assert order == [(number, place) for number in range(meetings) for place in range(count)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sets(st.integers(1, 4)), max_size=6))
def test_who_is_not_needed_stays_where_it_was(others: list[set[int]]) -> None:
    step, ran = InStep(5), []
    decided: set[int] = set()

    def walk(place: int) -> None:
        for number, needed in enumerate(others):
            ran.append((place, number))
            if number in decided:  # comes by later
                continue
            members = {0, *needed}
            assert place in members
            assert step.meet(number, place, tuple, members=members) == tuple(sorted(members))
            decided.add(number)
        ran.append((place, len(others)))

    step.run(walk)
    assert sorted(ran) == sorted((place, number) for place in range(5) for number in range(len(others) + 1))
    for place in range(1, 5):  # what is decided without it lies behind the next meeting that it is needed for
        for number, needed in enumerate(others):
            if place not in needed:
                first = next((later for later in range(number, len(others)) if place in others[later]), len(others))
                assert ran.index((place, number)) > ran.index((0, first))


@pytest.mark.parametrize("fails", [0, 1, 2])
@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_where_one_fails_all_end(fails: int, error: BaseException) -> None:
    step, ended = InStep(3), []

    def walk(place: int) -> None:
        try:
            step.meet("first", None, list)
            if place == fails:
                raise error
            step.meet("second", None, list)
        finally:
            ended.append(place)

    with pytest.raises(type(error)) as caught:
        step.run(walk)
    assert caught.value is error
    assert sorted(ended) == [0, 1, 2]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dprp in step")]


def test_what_is_made_of_all_may_fail() -> None:
    step = InStep(3)

    def fail(_values: list[Any]) -> None:
        raise ArithmeticError("singular")

    with pytest.raises(ArithmeticError, match="singular"):
        step.run(lambda _: step.meet("here", 1, fail))


@pytest.mark.parametrize(
    "ways",
    [("a", "a", "b"), ("a", "b", "a"), ("", "a", "a"), ("a", "", ""), ("ab", "a", "ab"), ("ab", "ba", "ab")],
)
def test_other_ways_are_found(ways: tuple[str, ...]) -> None:
    step = InStep(len(ways))

    def walk(place: int) -> None:
        for where in ways[place]:
            step.meet(where, None, list)

    with pytest.raises(OtherWaysError, match="batches of the images take different ways through the network"):
        step.run(walk)


def test_autocast_is_every_batch_s() -> None:
    step, seen = InStep(3), []
    with torch.autocast("cpu", torch.bfloat16):
        step.run(lambda _: seen.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype))
    InStep(2).run(lambda _: seen.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype))
    assert seen == [torch.bfloat16] * 3 + [torch.float32] * 2


class _Mean(nn.Module):
    """Takes off the mean of all images, of whichever batch."""

    def __init__(self, step: InStep) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        def combined(parts: list[tuple[Tensor, int]]) -> Tensor:
            return torch.stack([total for total, _ in parts]).sum(0) / sum(count for _, count in parts)

        mean: Tensor = self.step.meet("mean", (x.sum(0), len(x)), combined)
        return x - mean


def test_a_network_knows_of_all_batches() -> None:
    torch.manual_seed(0)
    images, seen = torch.randn(10, 3), []
    step = InStep(3)
    model = nn.Sequential(nn.Linear(3, 4), _Mean(step), nn.Linear(4, 2)).eval()
    model.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    run_in_step(model, images.split(4), step)
    whole = nn.Linear(4, 2)
    whole.load_state_dict(model[2].state_dict())
    inner = model[0](images)
    torch.testing.assert_close(torch.cat(seen), whole(inner - inner.mean(0)))


def test_a_network_that_cannot_take_them_says_so() -> None:
    step = InStep(2)
    model = nn.Sequential(nn.Linear(3, 4), _Mean(step)).eval()
    with pytest.raises(ModelError, match=r"the model cannot take an input of shape \(2, 5\).*0: "):
        run_in_step(model, [torch.zeros(2, 3), torch.zeros(2, 5)], step)
