r"""Distances between two clouds of points by optimal transport, as a cost of each point: entropic, and sliced.

    Sinkhorn:  min over plans P of  sum_ij P_ij |x_i - y_j|^2 - epsilon H(P),   rows and columns of P sum to 1/n
               (Cuturi 2013, "Sinkhorn Distances", algorithm 1), iterated on log-potentials, which no epsilon underflows
    sliced:    mean over directions u of the squared Wasserstein distance of the projections <u, x> and <u, y>, which
               sorting both gives (Bonneel et al. 2015, "Sliced and Radon Wasserstein Barycenters of Measures")

Each gives the cost of every point of x, whose mean is the distance: so what some of the points cost, such as those of
one batch among a bank's, is a mean over these. Numbers of iterations are fixed, so that nothing waits for the device.
Shapes: n points of d channels, k directions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinkhorn(x: Tensor, y: Tensor, epsilon: float = 0.1, num_iterations: int = 100) -> Tensor:
    """Cost of each point of x in the entropic transport to y, n; their mean is sum_ij P_ij |x_i - y_j|^2.

    The gradient is that of the cost at the plan found, held constant, which at convergence is the gradient of the
    entropic optimum (envelope theorem); no iteration is remembered for it. Computed in float32 at least.

    Args:
        x: n d.
        y: n d, as many points.
        epsilon: weight of the entropy, in units of a squared distance; the smaller, the more iterations it takes.
        num_iterations: how often both potentials are updated.
    """
    num = len(x)
    with torch.autocast(x.device.type, enabled=False):
        x, y = (each.to(torch.promote_types(each.dtype, torch.float32)) for each in (x, y))
        # Not by |x|^2 - 2 <x, y> + |y|^2, which loses the small distances that decide.
        cost = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
        with torch.no_grad():
            scaled = -cost / epsilon
            rows, columns = torch.zeros_like(cost[:, 0]), torch.zeros_like(cost[0])  # potentials / epsilon
            for _ in range(num_iterations):
                columns = -torch.logsumexp(scaled + rows[:, None], 0) - math.log(num)
                rows = -torch.logsumexp(scaled + columns, 1) - math.log(num)
            plan = (scaled + rows[:, None] + columns).exp()
        return num * (plan * cost).sum(1)


def sliced_wasserstein(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    """Cost of each point of x in the transport to y along directions, n; their mean is the sliced distance squared.

    Computed in float32 at least.

    Args:
        x: n d.
        y: n d, as many points.
        directions: k d, of length 1.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, y, directions = (each.to(torch.promote_types(each.dtype, torch.float32)) for each in (x, y, directions))
        along, wanted = x @ directions.mT, (y @ directions.mT).sort(0).values
        rank = along.detach().argsort(0).argsort(0)
        return (along - wanted.gather(0, rank)).square().mean(1)


def random_directions(num: int, channels: int, device: torch.device) -> Tensor:
    """Directions spread evenly over the sphere, num channels, drawn from torch's generator."""
    return torch.nn.functional.normalize(torch.randn(num, channels, device=device), dim=1)
