"""Factors lose exactly what they say they lose, and nothing loses less."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dprp.converter import decompose
from dprp.converter.lowrank.decomposition import (
    Factors,
    best_pair,
    factor_tail_energies,
    recut,
    regularised,
    tail_energies,
    true_svd,
)
from dprp.converter.lowrank.moments import PairMoments
from dprp.converter.lowrank.regression import RIDGES, best_ridge, nearest_map


def fitted(matrix: Tensor, rank: int, moments: PairMoments, ridge: float) -> Factors:
    """The rank-r map from z that comes nearest to M x."""
    return decompose(nearest_map(matrix, moments.through(matrix), ridge), rank, moments.ridged(ridge))


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor | None, int]:
    """A matrix (perhaps with groups), perhaps the second moment of its inputs, and a rank."""
    groups = draw(st.sampled_from([(), (), (3,)]))
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    matrix = torch.randn(*groups, rows, columns, dtype=torch.float64)
    inputs = torch.randn(*groups, columns, draw(st.integers(1, 30)), dtype=torch.float64)
    if draw(st.booleans()):
        inputs[..., 0, :] = 0  # a dead channel
    moment = regularised(inputs @ inputs.mT / inputs.shape[-1]) if draw(st.booleans()) else None
    return matrix, moment, draw(st.integers(1, min(rows, columns)))


def lost(matrix: Tensor, fit: Tensor, moment: Tensor | None) -> Tensor:
    """E |M x - M_r x|^2 over all groups."""
    off = matrix - fit
    if moment is None:
        return off.square().sum()
    return (off @ moment @ off.mT).diagonal(dim1=-2, dim2=-1).sum()


@given(problems())
@settings(max_examples=150, deadline=None)
def test_the_error_is_the_tail_sum(problem: tuple[Tensor, Tensor | None, int]) -> None:
    matrix, moment, rank = problem
    energies = tail_energies(matrix, moment)
    whole = lost(matrix, torch.zeros_like(matrix), moment)
    torch.testing.assert_close(energies[0], whole, rtol=1e-8, atol=1e-10)
    error = lost(matrix, decompose(matrix, rank, moment).product(), moment)
    torch.testing.assert_close(error, energies[rank], rtol=1e-6, atol=float(whole) * 1e-10 + 1e-12)
    assert bool((energies.diff() <= 1e-12).all())


def metric_of(matrix: Tensor, each: int, seed: int) -> Tensor:
    """Of outputs with so many rows each."""
    torch.manual_seed(seed)
    outputs = matrix.shape[-2] // each
    slopes = torch.randn(*matrix.shape[:-2], outputs, 2 * outputs, dtype=torch.float64)
    return regularised(slopes @ slopes.mT, 1e-2)


@given(problems(), st.integers(0, 2**16), st.sampled_from([1, 2, 3]))
@settings(max_examples=100, deadline=None)
def test_in_an_outputs_metric_nothing_is_nearer_and_tails_say_what_is_lost(
    problem: tuple[Tensor, Tensor | None, int], seed: int, each: int
) -> None:
    matrix, moment, rank = problem
    each = each if matrix.shape[-2] % each == 0 else 1
    metric = metric_of(matrix, each, seed)
    eye = torch.eye(each, dtype=torch.float64)
    full = torch.stack([torch.kron(one, eye) for one in metric.reshape(-1, *metric.shape[-2:])])
    root = torch.linalg.cholesky(full.reshape(*matrix.shape[:-2], matrix.shape[-2], -1)).mT

    def felt(fit: Tensor) -> Tensor:
        return lost(root @ matrix, root @ fit, moment)

    ours = decompose(matrix, rank, moment, metric).product()
    size = float(felt(torch.zeros_like(matrix)))
    torch.testing.assert_close(felt(ours), tail_energies(root @ matrix, moment)[rank], rtol=1e-4, atol=1e-6 * size)
    energies = tail_energies(matrix, moment, metric)
    torch.testing.assert_close(energies[0], lost(matrix, torch.zeros_like(matrix), moment), rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(energies[rank], lost(matrix, ours, moment), rtol=1e-3, atol=1e-5 * float(energies[0]))
    assert bool((energies.diff() <= 1e-12).all())


@given(problems())
@settings(max_examples=60, deadline=None)
def test_factors_are_a_true_svd(problem: tuple[Tensor, Tensor | None, int]) -> None:
    matrix, moment, rank = problem
    u, s, v = decompose(matrix, rank, moment)
    eye = torch.eye(rank, dtype=torch.float64).expand(*matrix.shape[:-2], rank, rank)
    torch.testing.assert_close(u.mT @ u, eye, rtol=0, atol=1e-9)
    torch.testing.assert_close(v @ v.mT, eye, rtol=0, atol=1e-9)
    assert bool((s >= 0).all())
    assert bool((s.diff(dim=-1) <= 1e-12).all())


@given(problems())
@settings(max_examples=60, deadline=None)
def test_plain_fit_is_torchs_svd(problem: tuple[Tensor, Tensor | None, int]) -> None:
    matrix, _, rank = problem
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    best = (u[..., :rank] * s[..., None, :rank]) @ v[..., :rank, :]
    ours = decompose(matrix, rank)
    torch.testing.assert_close(ours.s, s[..., :rank], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(lost(matrix, ours.product(), None), lost(matrix, best, None), rtol=1e-6, atol=1e-9)


@given(problems())
@settings(max_examples=60, deadline=None)
def test_identity_moment_is_plain(problem: tuple[Tensor, Tensor | None, int]) -> None:
    matrix, _, _ = problem
    eye = torch.eye(matrix.shape[-1], dtype=torch.float64).expand(*matrix.shape[:-2], -1, -1)
    torch.testing.assert_close(tail_energies(matrix, eye), tail_energies(matrix), rtol=1e-7, atol=1e-9)


@given(problems())
@settings(max_examples=60, deadline=None)
def test_recut_keeps_the_product_or_cuts_it_best(problem: tuple[Tensor, Tensor | None, int]) -> None:
    matrix, moment, rank = problem
    full = min(matrix.shape[-2:])
    # Factors that are no SVD: any split of the matrix.
    left = torch.randn(*matrix.shape[:-1], full, dtype=torch.float64)
    ones = torch.ones(*matrix.shape[:-2], full, dtype=torch.float64)
    tangled = Factors(left, ones, torch.linalg.pinv(left) @ matrix)
    product = tangled.product()
    torch.testing.assert_close(recut(tangled, full, moment).product(), product, rtol=1e-7, atol=1e-8)
    error = lost(product, recut(tangled, rank, moment).product(), moment)
    scale = float(lost(product, torch.zeros_like(product), moment))
    torch.testing.assert_close(error, tail_energies(product, moment)[rank], rtol=1e-5, atol=scale * 1e-8 + 1e-12)
    energies = factor_tail_energies(tangled, moment)
    torch.testing.assert_close(energies, tail_energies(product, moment), rtol=1e-6, atol=scale * 1e-8)


@given(problems())
@settings(max_examples=60, deadline=None)
def test_leading_parts_are_the_fits_at_lower_ranks(problem: tuple[Tensor, Tensor | None, int]) -> None:
    matrix, moment, rank = problem
    left, right = best_pair(matrix, rank, moment)
    for lower in (rank, 1):
        fit = left[..., :lower] @ right[..., :lower, :]
        torch.testing.assert_close(fit, decompose(matrix.double(), lower, moment).product(), rtol=1e-6, atol=1e-7)


def test_true_svd_of_a_product() -> None:
    left, right = torch.randn(7, 3, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    factors = true_svd(left, right)
    torch.testing.assert_close(factors.product(), left @ right)
    torch.testing.assert_close(factors.s, torch.linalg.svdvals(left @ right)[:3])


@given(problems(), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_fit_in_sequence_beats_cutting_the_weight(problem: tuple[Tensor, Tensor | None, int], samples: int) -> None:
    matrix, _, rank = problem
    if matrix.dim() > 2:
        matrix = matrix[0]
    x = torch.randn(matrix.shape[1], samples, dtype=torch.float64)
    z = x + 0.3 * torch.randn_like(x)
    moments = PairMoments(x @ z.T / samples, z @ z.T / samples, x.mean(1), z.mean(1))
    ours = fitted(matrix, rank, moments, 1e-9).product()
    plain = decompose(matrix, rank).product()
    error, plain_error = ((matrix @ x - fit @ z).square().mean() for fit in (ours, plain))
    assert error <= plain_error * (1 + 1e-4) + 1e-9


def test_without_anything_changed_the_fit_is_the_matrix() -> None:
    matrix, x = torch.randn(4, 6, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    second = x @ x.T  # rank 3 of 6: fewer samples than features
    fit = fitted(matrix, 4, PairMoments(second, second, x.mean(1), x.mean(1)), 1e-4)
    torch.testing.assert_close(fit.product(), matrix)


def test_dead_inputs_and_no_inputs_are_handled() -> None:
    matrix = torch.randn(4, 6, dtype=torch.float64)
    nothing = torch.zeros(6, 6, dtype=torch.float64)
    moments = PairMoments(nothing, nothing, nothing[0], nothing[0])
    torch.testing.assert_close(fitted(matrix, 2, moments, 1e-4).product(), decompose(matrix, 2).product())


def test_the_ridge_is_the_one_that_holds_on_other_samples() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(5, 40, dtype=torch.float64)
    mixing = torch.eye(40, dtype=torch.float64) + 0.1 * torch.randn(40, 40, dtype=torch.float64)

    def pairs(samples: int, noise: float) -> tuple[Tensor, Tensor]:
        x = torch.randn(40, samples, dtype=torch.float64)
        return x, mixing @ x + noise * torch.randn(40, samples, dtype=torch.float64)

    def moments(x: Tensor, z: Tensor) -> PairMoments:
        return PairMoments(x @ z.T / x.shape[1], z @ z.T / x.shape[1], x.mean(1), z.mean(1))

    def chosen(samples: int, noise: float) -> float:
        seen, (x, z) = moments(*pairs(samples, noise)), pairs(4000, noise)
        others = moments(x, z)
        maps = {ridge: nearest_map(matrix, seen.through(matrix), ridge) for ridge in RIDGES}
        errors = {ridge: float((matrix @ x - there @ z).square().sum()) for ridge, there in maps.items()}
        ridge = best_ridge(maps.__getitem__, matrix @ others.cross, others.second)
        assert errors[ridge] == min(errors.values())
        return ridge

    assert chosen(10_000, 0.0) == RIDGES[0]  # there is much to make up for, and all of it is seen
    assert RIDGES[0] < chosen(30, 0.5) <= 1.0  # fewer samples than inputs


def test_a_map_that_is_held_entirely_is_the_matrix() -> None:
    matrix = torch.randn(3, 4, dtype=torch.float64)
    second = torch.eye(4, dtype=torch.float64)
    moments = PairMoments(2 * second, second, torch.zeros(4).double(), torch.zeros(4).double())
    assert torch.equal(nearest_map(matrix, moments.through(matrix), math.inf), matrix)
    torch.testing.assert_close(nearest_map(matrix, moments.through(matrix), 1e6), matrix, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(nearest_map(matrix, moments.through(matrix), 0.0), 2 * matrix)
