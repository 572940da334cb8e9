"""Optimal transport between clouds of codes: against exact assignment, and in closed form."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lit_medgen.methods.gans.transport import random_directions, sinkhorn, sliced_wasserstein


def clouds(num: int = 12, channels: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(num, channels, dtype=torch.float64), torch.randn(num, channels, dtype=torch.float64) + 0.5


def assignment(x: Tensor, y: Tensor) -> Tensor:
    """The number of the point of y that each of x is assigned."""
    return torch.as_tensor(linear_sum_assignment((x[:, None] - y).square().sum(2).numpy())[1])


def assigned(x: Tensor, y: Tensor) -> Tensor:
    """Squared distance of each point to the one it is assigned."""
    return (x - y[assignment(x, y)]).square().sum(1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sinkhorn_costs_no_more_than_entropy_allows(seed: int) -> None:
    """Above the exact assignment by less the smaller epsilon, and never by more than epsilon log n, all the entropy."""
    x, y = clouds(8, seed=seed)
    epsilons = (1.0, 0.3, 0.1, 0.03)
    gaps = [float((sinkhorn(x, y, epsilon, 800) - assigned(x, y)).mean()) for epsilon in epsilons]
    assert all(before > after > 0 for before, after in pairwise(gaps))
    assert all(gap <= epsilon * math.log(8) for gap, epsilon in zip(gaps, epsilons, strict=True))


def test_sinkhorn_ends_in_the_exact_assignment() -> None:
    """The cost of each point, and its gradient, 2 (x_i - y_p(i)) / n."""
    x, y = clouds(6, seed=2)
    wanted = 2 * (x - y[assignment(x, y)]) / 6
    torch.testing.assert_close(sinkhorn(x, y, 0.01, 2000), assigned(x, y), rtol=1e-3, atol=1e-3)
    (found,) = torch.autograd.grad(sinkhorn(x.requires_grad_(True), y, 0.01, 2000).mean(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("distance", ["sinkhorn", "sliced"])
def test_costs_go_with_their_points(distance: str) -> None:
    """In any order of x, and whatever the order of y."""
    x, y = clouds()
    directions, order, other = random_directions(9, 3, x.device).double(), torch.randperm(12), torch.randperm(12)

    def costs(x: Tensor, y: Tensor) -> Tensor:
        return sinkhorn(x, y) if distance == "sinkhorn" else sliced_wasserstein(x, y, directions)

    torch.testing.assert_close(costs(x[order], y[other]), costs(x, y)[order])


def test_the_sliced_distance_of_a_shift_is_exact() -> None:
    """<u, v>^2 for each direction u; over an orthonormal basis their mean is |v|^2 / d."""
    x, shift = clouds()[0], torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    directions = random_directions(5, 3, x.device).double()
    costs = sliced_wasserstein(x, (x + shift).flip(0), directions)
    torch.testing.assert_close(costs, (directions @ shift).square().mean().expand(12))
    basis = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    torch.testing.assert_close(sliced_wasserstein(x, x + shift, basis).mean(), shift.square().sum() / 3)


def test_along_one_line_sorting_is_the_exact_assignment() -> None:
    x, y = (each[:, :1] for each in clouds())
    torch.testing.assert_close(sliced_wasserstein(x, y, torch.ones(1, 1, dtype=torch.float64)), assigned(x, y))


def test_in_many_channels_full_transport_prefers_codes_of_zero_and_sliced_does_not() -> None:
    """Which is why sliced is the default: to few draws of the prior, zero is nearer than other draws are."""
    torch.manual_seed(0)
    prior, codes = torch.randn(2, 32, 256)
    directions = random_directions(64, 256, prior.device)
    assert sinkhorn(0 * codes, prior).mean() < 0.6 * sinkhorn(codes, prior).mean()
    assert (
        sliced_wasserstein(0 * codes, prior, directions).mean()
        > 3 * sliced_wasserstein(codes, prior, directions).mean()
    )
