"""Steps of a matrix are as long along each of its directions, and no longer than asked."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dprp.converter.conversion.muon import Muon, orthogonal
from dprp.converter.conversion.step_sizes import matrix_step_size

SIZES = st.integers(1, 12)


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, st.integers(0, 10**6), st.sampled_from([1e-12, 1.0, 1e9]))
def test_directions_stay_and_become_as_long_as_each_other(rows: int, columns: int, seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    count = min(rows, columns)
    u = torch.linalg.qr(torch.randn(rows, count, generator=generator, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(columns, count, generator=generator, dtype=torch.float64)).Q
    lengths = 0.1 + torch.rand(count, generator=generator, dtype=torch.float64)
    beside = torch.randn(columns, rows, generator=generator, dtype=torch.float64)  # of the same smaller side
    wide, _, alone = orthogonal([size * u * lengths @ v.mT, beside, torch.ones(1, 3)])
    torch.testing.assert_close(alone, torch.full((1, 3), float(alone[0, 0])))
    made = u.mT @ wide @ v
    torch.testing.assert_close(made, torch.diag(made.diagonal()), rtol=0, atol=1e-9)
    assert (made.diagonal() > 0.6).all()
    assert (made.diagonal() < 1.25).all()


def test_nothing_comes_of_nothing() -> None:
    assert torch.equal(orthogonal([torch.zeros(3, 5)])[0], torch.zeros(3, 5))
    assert orthogonal([]) == []


def test_a_step_is_as_long_as_asked_and_goes_down() -> None:
    torch.manual_seed(0)
    matrix = nn.Parameter(3 * torch.linalg.qr(torch.randn(20, 4)).Q)
    assert abs(matrix_step_size(matrix) - 3) < 1e-5
    wanted = torch.randn(20, 4)
    still, beside = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(3))
    mover = Muon([{"params": [matrix, still], "lr": 0.1}], [{"params": [beside], "lr": 0.5}])
    start, losses = matrix.detach().clone(), []
    for _ in range(30):
        mover.zero_grad()
        loss = (matrix - wanted).square().sum() + beside.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
        mover.step()
        if len(losses) == 1:
            length = torch.linalg.svdvals(matrix.detach() - start)
            assert (length > 0.06).all()
            assert (length < 0.125).all()
            torch.testing.assert_close(beside.detach(), torch.full((3,), 0.5))  # as SGD moves it
    assert losses[-1] < 0.5 * losses[0]
    assert not still.any()  # it had no gradient
