r"""Fréchet distance of two sets of features, and the same with each person left out, without a decomposition for each.

    |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^1/2)                               (Heusel et al. 2017, eq. 6)

With A and B the centred features over sqrt(n - 1), S_x S_y = A^T A B^T B has the squared singular values of A B^T
as eigenvalues, so the trace of its root is their sum: exact, and as small as the lesser of images and features.

Without the p images of a group, rows A_g of A, the covariance is (n - 1) / (n - p - 1) (A^T A - A_g^T C A_g) with
C = 1 + 11^T / (n - p). Of K = B A^T A B^T that is an update of rank p, whose effect on the trace of the root is one
integral: since tr K^1/2 = 2/pi int_0^inf tr K (K + s^2)^-1 ds,

    tr (K - W^T W)^1/2 - tr K^1/2 = 1/pi int_0^inf log det(1 - W (K + s^2)^-1 W^T) ds.

With A B^T = U diag(sigma) V^T and C = L L^T, W = L^T U_g diag(sigma) in the basis V, and the matrix is
1 - L^T U_g diag(sigma^2 / (sigma^2 + s^2)) U_g^T L: for all groups and all s together a product of two matrices.
In log s the integrand is analytic in a strip of half-width pi / 2, so the trapezoid rule with step h is off by
exp(-pi^2 / h).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

STEP = 0.3
"""Of log s: an error of 5e-15."""
SPAN = 23.0
"""log s runs this far below and above the largest singular value: what lies beyond is 1e-10 of it."""


def frechet_distance(x: Tensor, y: Tensor) -> Tensor:
    """Squared Fréchet distance of the Gaussians fitted to x (n d) and y (m d)."""
    a, b = (_factor(z) for z in (x, y))
    root = torch.linalg.svdvals(a @ b.T).sum()
    return (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum() - 2 * root


def frechet_without(x: Tensor, y: Tensor, groups: Sequence[Tensor]) -> Tensor:
    """g: the distance of x (n d) and y (m d) without each group of rows of x (indices, any number of them)."""
    n, mean = len(x), x.mean(0)
    (q, a), (_, b) = (torch.linalg.qr(_centred(z)) if len(z) > z.shape[1] else (None, _centred(z)) for z in (x, y))
    u, sigma, _ = torch.linalg.svd(a @ b.T, full_matrices=False)
    u = u if q is None else q @ u
    sizes = torch.tensor([len(group) for group in groups])
    distances = torch.empty(len(groups), dtype=x.dtype)
    for num in sizes.unique().tolist():
        rows = torch.stack([group for group in groups if len(group) == num])  # g p
        roots = ((n - 1) / (n - num - 1)) ** 0.5 * _traces_of_roots(u[rows], sigma, n)
        apart = x[rows] - mean
        moved = apart.sum(1) / (n - num)  # by how much the mean of the others lies on the other side
        left = (x - mean).square().sum() - apart.square().sum((1, 2)) - (n - num) * moved.square().sum(1)
        means = (mean - moved - y.mean(0)).square().sum(1)
        distances[sizes == num] = means + left / (n - num - 1) + b.square().sum() - 2 * roots
    return distances


def _traces_of_roots(groups: Tensor, sigma: Tensor, n: int) -> Tensor:
    """g: the sum of singular values, but of a factor without each group of rows; groups: g p k, rows of U."""
    num = groups.shape[1]
    if not sigma[0] > 0:
        return sigma.sum().expand(len(groups))
    identity = torch.eye(num, dtype=sigma.dtype, device=sigma.device)
    root = torch.linalg.cholesky(identity + 1 / (n - num))
    rows = root.T @ groups
    pairs = rows[:, :, None] * rows[:, None]  # g p p k
    log_s = torch.arange(-SPAN, SPAN, STEP, dtype=sigma.dtype, device=sigma.device)
    below, above = (sigma[0] * log_s[part].exp() for part in (log_s <= 0, log_s > 0))
    squares = sigma[:, None] ** 2
    # 1 less a share near 1 would lose its digits: below, what lies outside U, and what of the inside is left.
    left = (identity - rows @ rows.mT)[..., None] + pairs @ (below**2 / (squares + below**2))
    taken = pairs @ (squares / (squares + above**2))
    # Where a group is all there is of a direction, the determinant falls to s^2, and rounding may make it 0.
    logs = torch.linalg.slogdet(left.movedim(-1, 1)).logabsdet.clamp(min=-4 * SPAN * num) @ below
    logs += torch.linalg.eigvalsh(taken.movedim(-1, 1)).neg().log1p().sum(-1) @ above
    return sigma.sum() + logs * STEP / torch.pi


def _centred(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / (len(x) - 1) ** 0.5


def _factor(x: Tensor) -> Tensor:
    """A with A^T A the covariance of x, of no more rows than features."""
    return torch.linalg.qr(_centred(x), mode="r").R if len(x) > x.shape[1] else _centred(x)
