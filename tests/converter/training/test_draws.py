"""What a run draws: the same from any place on, whatever else draws random numbers."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dprp.converter.training.batches import Draws
from dprp.converter.training.random_numbers import random_numbers, random_state
from dprp.converter.training.together import Together


class Noisy(Dataset[tuple[Tensor, int]]):
    """Images that are changed by all three kinds of random numbers."""

    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        shift = random.random() + np.random.rand()  # noqa: NPY002
        return index + shift + torch.rand(1, 2, 2), index


def draws(workers: int = 0, generator: bool = True) -> Draws:
    made = torch.Generator().manual_seed(1) if generator else None
    loader = DataLoader(Noisy(), 4, shuffle=True, generator=made, num_workers=workers)
    return Draws(
        loader,
        torch.device("cpu"),
        seed=0,
        layout=torch.contiguous_format,
        normalised=False,
        together=Together(Accelerator(cpu=True)),
    )


@pytest.mark.parametrize("generator", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("skip", [0, 1, 2])
def test_an_epoch_goes_on_where_it_was_left(skip: int, size: int, generator: bool) -> None:
    first, again = draws(generator=generator), draws(generator=generator)
    list(first.groups(1, size))
    start = first.state(over=True)
    whole = list(first.groups(2, size))
    assert [last for _, last in whole].count(True) == 1
    assert sum(len(group) for group, _ in whole) == 6
    torch.rand(5)  # a network with dropout
    again.restore(start)
    rest = list(again.groups(2, size, skip))
    assert len(rest) == len(whole) - skip
    for (ours, our_last), (theirs, their_last) in zip(rest, whole[skip:], strict=True):
        assert our_last == their_last
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])


def test_processes_that_read_ahead_change_nothing_about_that() -> None:
    first, again = draws(workers=2), draws(workers=2)
    start = first.state(over=True)
    whole = list(first.groups(1, 1))
    torch.rand(5)
    again.restore(start)
    for (ours, _), (theirs, _) in zip(again.groups(1, 1, skip=2), whole[2:], strict=True):
        assert torch.equal(ours[0][0], theirs[0][0])


def test_epochs_differ() -> None:
    one = draws()
    first, second = (torch.cat([group[0][0] for group, _ in one.groups(epoch, 1)]) for epoch in (1, 2))
    assert not torch.equal(first, second)


def test_random_numbers_stand_where_they_stood() -> None:
    before = random_state()
    with random_numbers(3, 4):
        torch.rand(3)
        random.random()
        np.random.rand()  # noqa: NPY002
        inside = torch.rand(2)
    after = random_state()
    assert torch.equal(before["torch"], after["torch"])
    assert before["python"] == after["python"]
    assert torch.equal(before["numpy"][1], after["numpy"][1])
    with random_numbers(3, 5):
        torch.rand(3)
        assert not torch.equal(torch.rand(2), inside)
