"""Low-rank factors of a matrix: the best fit to its entries, or to what it does to its inputs.

All of it runs in float64, outside autocast and outside autograd. Matrices may have leading batch axes (groups).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import LayerError


class Factors(NamedTuple):
    """A singular value decomposition cut at rank r: u (..., m, r), s (..., r) falling, v (..., r, n)."""

    u: Tensor
    s: Tensor
    v: Tensor

    @property
    def rank(self) -> int:
        """Singular values kept."""
        return self.s.shape[-1]

    def product(self) -> Tensor:
        """u diag(s) v, (..., m, n)."""
        return (self.u * self.s.unsqueeze(-2)) @ self.v


@torch.no_grad()
def decompose(
    matrix: Tensor, rank: int, second_moment: Tensor | None = None, output_metric: Tensor | None = None
) -> Factors:
    """Best rank-r factors of a matrix, weighed by its inputs and by what its outputs are for, where these are known.

    Args:
        matrix: M (..., m, n), any float dtype.
        rank: singular values kept, 1 <= rank <= min(m, n).
        second_moment: C = E[x x^T] (..., n, n) of the inputs x that M sees, positive definite (see
            `regularised`). Without it every direction of input counts the same (C = I).
        output_metric: G (..., o, o) in which the outputs' error is measured, positive definite; rows of M come o by
            o, each with as many as there are (of a kernel's rows, say) beside it. Without it G = I.

    Returns:
        The true SVD of M_r, the rank-r matrix with the smallest E |M x - M_r x|^2, in M's dtype; with a metric,
        |d|^2 stands for d^T G d.

    Raises:
        LayerError: rank out of range.

    Source: Eckart and Young (1936); in the metric of C as in DESIGN's "decomposition", where with C = L L^T the
        error is the tail sum of the squared singular values of M L; with G = H H^T, of H^T M L.
    """
    rows, columns = matrix.shape[-2:]
    if not 1 <= rank <= min(rows, columns):
        raise LayerError(
            f"rank {rank} is not in 1..{min(rows, columns)} (matrix {rows} x {columns}); choose another rank"
        )
    factors = true_svd(*best_pair(matrix, rank, second_moment, output_metric))
    return Factors(*(part.to(matrix.dtype) for part in factors))


@torch.no_grad()
def best_pair(
    matrix: Tensor, rank: int, second_moment: Tensor | None = None, output_metric: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Two factors whose leading columns and rows are, at every lower rank too, what `decompose` finds.

    Returns:
        (..., m, rank) and (..., rank, n), float64.
    """
    exact = matrix.detach().to(torch.float64)
    if output_metric is not None:
        above = _above(output_metric.to(exact))
        left, right = best_pair(_mixed(above, exact), rank, second_moment)
        return _unmixed(above, left), right
    moment = None if second_moment is None else second_moment.to(exact)
    if exact.shape[-2] <= exact.shape[-1]:
        # M L = U S V^T has the left basis of M C M^T, and M_r = U_r U_r^T M needs neither L nor its inverse.
        left = _leading(_gram(exact, moment), rank)
        return left, left.mT @ exact
    root = None if moment is None else torch.linalg.cholesky(moment)
    whitened = exact if root is None else exact @ root
    basis = _leading(whitened.mT @ whitened, rank)
    right = basis.mT
    if root is not None:
        right = torch.linalg.solve_triangular(root, right, upper=False, left=False)
    return whitened @ basis, right


@torch.no_grad()
def tail_energies(matrix: Tensor, second_moment: Tensor | None = None, output_metric: Tensor | None = None) -> Tensor:
    """Error of the best fit at each rank.

    Args:
        matrix, second_moment, output_metric: as for `decompose`.

    Returns:
        (min(m, n) + 1,) float64: entry r is E |M x - M_r x|^2 summed over groups, every output counting the same
        whatever the metric that M_r is best in; entry 0 is the whole energy.
    """
    exact = matrix.detach().to(torch.float64)
    moment = None if second_moment is None else second_moment.to(exact)
    if exact.shape[-2] <= exact.shape[-1]:
        return output_tail_energies(_gram(exact, moment), output_metric)
    whitened = exact if moment is None else exact @ torch.linalg.cholesky(moment)
    if output_metric is None:
        return _tail_sums(torch.linalg.eigvalsh(whitened.mT @ whitened))
    above = _above(output_metric.to(exact))
    weighed = _mixed(above, whitened)
    right = torch.linalg.eigh(weighed.mT @ weighed).eigenvectors
    return _tail_sums((whitened @ right).square().sum(-2))


@torch.no_grad()
def output_tail_energies(second_moment: Tensor, output_metric: Tensor | None = None) -> Tensor:
    """`tail_energies` of an output, from its own second moment (..., m, m), float64."""
    if output_metric is None:
        return _tail_sums(torch.linalg.eigvalsh(second_moment))
    above = _above(output_metric.to(second_moment))
    values, left = torch.linalg.eigh(_mixed(above, _mixed(above, second_moment).mT))
    return _tail_sums(values * _unmixed(above, left).square().sum(-2))


@torch.no_grad()
def true_svd(left: Tensor, right: Tensor) -> Factors:
    """The SVD of a product, without forming it: QR of both sides, SVD of the small core.

    Args:
        left: (..., m, r).
        right: (..., r, n).
    """
    left_basis, left_core = torch.linalg.qr(left)
    right_basis, right_core = torch.linalg.qr(right.mT)
    u, s, v = torch.linalg.svd(left_core @ right_core.mT, full_matrices=False)
    return Factors(left_basis @ u, s, v @ right_basis.mT)


def regularised(second_moment: Tensor, ridge: float = 1e-4) -> Tensor:
    """A second moment made positive definite, for few samples and dead channels.

    Args:
        second_moment: (..., n, n), symmetric.
        ridge: added to the diagonal, relative to the mean of the diagonal.
    """
    moment = second_moment.to(torch.float64, copy=True)
    scale = moment.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True)
    # An input that is always zero has no scale of its own: any ridge gives plain SVD.
    moment.diagonal(dim1=-2, dim2=-1).add_(torch.where(scale > 0, scale * ridge, torch.ones_like(scale)))
    return moment


def _above(metric: Tensor) -> Tensor:
    """H^T of G = H H^T, upper triangular."""
    lower: Tensor = torch.linalg.cholesky(metric)
    return lower.mT


def _mixed(above: Tensor, matrix: Tensor) -> Tensor:
    """H^T M, where M (..., o k, n) has k rows to each output."""
    return (above @ matrix.reshape(*above.shape[:-1], -1)).reshape(matrix.shape)


def _unmixed(above: Tensor, matrix: Tensor) -> Tensor:
    """H^-T M."""
    rows = matrix.reshape(*above.shape[:-1], -1)
    solved: Tensor = torch.linalg.solve_triangular(above, rows, upper=True)
    return solved.reshape(matrix.shape)


def _tail_sums(squares: Tensor) -> Tensor:
    """What is lost at each rank, from what each direction (..., k) carries, the first to go first."""
    squares = squares.clamp_min(0).reshape(-1, squares.shape[-1]).sum(0)
    return torch.cat([squares.new_zeros(1), squares.cumsum(0)]).flip(0)


def _gram(matrix: Tensor, moment: Tensor | None) -> Tensor:
    gram = matrix @ matrix.mT if moment is None else matrix @ moment @ matrix.mT
    return (gram + gram.mT) / 2


def _leading(gram: Tensor, rank: int) -> Tensor:
    """Eigenvectors of the largest eigenvalues, (..., k, rank), largest first."""
    vectors: Tensor = torch.linalg.eigh(gram).eigenvectors
    return vectors.flip(-1)[..., :rank]


@torch.no_grad()
def recut(factors: Factors, rank: int, second_moment: Tensor | None = None) -> Factors:
    """Cuts factors to a lower rank; at their own rank, makes them a true SVD again without changing the product.

    Args:
        factors: u (..., m, r), s (..., r), v (..., r, n), not necessarily orthogonal.
        rank: 1 <= rank <= r.
        second_moment: inputs' second moment as for `decompose`.

    Returns:
        The best rank-`rank` fit to the product, as a true SVD in float64. Only r x r problems are solved.
    """
    exact = true_svd(factors.u.double() * factors.s.double().unsqueeze(-2), factors.v.double())
    if rank == exact.rank or second_moment is None:
        return Factors(exact.u[..., :rank], exact.s[..., :rank], exact.v[..., :rank, :])
    scaled = exact.s.unsqueeze(-1) * exact.v
    basis = _leading(_gram(scaled, second_moment.double()), rank)
    return true_svd(exact.u @ basis, basis.mT @ scaled)


@torch.no_grad()
def factor_tail_energies(factors: Factors, second_moment: Tensor | None = None) -> Tensor:
    """`tail_energies` of a product, from its factors: (r + 1,) float64, from r x r problems only."""
    exact = true_svd(factors.u.double() * factors.s.double().unsqueeze(-2), factors.v.double())
    return tail_energies(exact.s.unsqueeze(-1) * exact.v, second_moment)
