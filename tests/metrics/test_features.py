"""Scores of features against closed forms, other libraries and double loops."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from test_metrics import measured
from torch import Tensor

from lit_medgen.metrics import (
    Coverage,
    Density,
    FrechetDistance,
    KernelDistance,
    Precision,
    Recall,
    frechet_distance,
)


class Flat:
    """The voxels themselves."""

    name = "voxels"

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def draws(n: int, d: int, seed: int, scale: float = 1, shift: float = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale + shift


def whitened(x: Tensor) -> Tensor:
    """With mean 0 and covariance 1, exactly."""
    centred = x - x.mean(0)
    return centred @ torch.linalg.inv(torch.linalg.cholesky(centred.T.cov())).T


@pytest.mark.parametrize("n", [40, 6])  # more and fewer images than features
def test_frechet_distance_agrees_with_the_square_root_of_the_product(n: int) -> None:
    x, y = draws(n, 8, 0, 2, 1), draws(n + 3, 8, 1) @ draws(8, 8, 2)
    s_x, s_y = (np.cov(z.numpy().T) for z in (x, y))
    root = scipy.linalg.sqrtm(s_x @ s_y + 1e-14 * np.eye(8)).real
    expected = np.sum((x.mean(0) - y.mean(0)).numpy() ** 2) + np.trace(s_x + s_y - 2 * root)
    assert frechet_distance(x, y).item() == pytest.approx(expected, rel=1e-5)


def test_frechet_distance_has_its_closed_form() -> None:
    scale_x, scale_y = torch.tensor([1.0, 2, 3]).double(), torch.tensor([2.0, 2, 0.5]).double()
    shift = torch.tensor([0.5, 0, -1]).double()
    x, y = whitened(draws(50, 3, 0)) * scale_x, whitened(draws(60, 3, 1)) * scale_y + shift
    expected = (shift.square() + (scale_x - scale_y).square()).sum().item()  # diagonal covariances
    assert frechet_distance(x, y).item() == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(x, x).item() == pytest.approx(0, abs=1e-9)


def test_frechet_distance_agrees_with_torchmetrics() -> None:
    from torchmetrics.image.fid import _compute_fid

    x, y = draws(40, 8, 0, 2, 1), draws(50, 8, 1)
    reference = _compute_fid(x.mean(0), x.T.cov(), y.mean(0), y.T.cov())
    assert frechet_distance(x, y).item() == pytest.approx(reference.item(), rel=1e-6)


def test_frechet_distance_says_when_there_are_too_few_images() -> None:
    few = measured(FrechetDistance(Flat()), draws(6, 8, 0), draws(20, 8, 1))
    few.compute()
    assert few.features == "voxels; rank-deficient: 8 dimensions, 6 images"
    many = measured(FrechetDistance(Flat()), draws(9, 8, 0), draws(20, 8, 1))
    many.compute()
    assert many.features == "voxels"


@pytest.mark.parametrize(
    ("n", "m", "d", "per_person"), [(20, 24, 6, 1), (10, 8, 16, 1), (20, 24, 6, 4), (12, 16, 40, 4)]
)
def test_the_interval_of_a_frechet_distance_is_the_jackknifes_from_one_decomposition(
    n: int, m: int, d: int, per_person: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = draws(n, d, 0, 2, 1), draws(m, d, 1) @ draws(d, d, 2)
    without_x = [frechet_distance(torch.cat([x[:i], x[i + 1 :]]), y).item() for i in range(n)]
    people = range(0, m, per_person)
    without_y = [frechet_distance(x, torch.cat([y[:i], y[i + per_person :]])).item() for i in people]
    variance = sum((len(left) - 1) * np.var(left) for left in (without_x, without_y))
    decompositions, svdvals = [], torch.linalg.svdvals
    monkeypatch.setattr(torch.linalg, "svdvals", lambda a: (decompositions.append(1), svdvals(a))[1])
    estimate = measured(FrechetDistance(Flat()), x, y, [f"person {i // per_person}" for i in range(m)]).estimate()
    assert estimate.ci95[1] == pytest.approx(estimate.value + 1.96 * variance**0.5, rel=1e-8)
    assert len(decompositions) == 1


def test_recall_and_its_interval_end_at_one() -> None:
    estimate = measured(Recall(Flat()), draws(16, 3, 2, 0.6, 0.3), draws(18, 3, 102)).estimate()
    assert estimate.value < estimate.ci95[1] == 1


def test_kernel_distance_agrees_with_a_double_loop_and_torchmetrics() -> None:
    from torchmetrics.image.kid import poly_mmd

    x, y = draws(7, 4, 0), draws(7, 4, 1, 1.5, 0.5)

    def mean(a: Tensor, b: Tensor, same: bool) -> float:
        return float(
            np.mean(
                [(float(p @ q) / 4 + 1) ** 3 for i, p in enumerate(a) for j, q in enumerate(b) if not (same and i == j)]
            )
        )

    ours = measured(KernelDistance(Flat()), x, y).compute().item()
    assert ours == pytest.approx(mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False), rel=1e-9)
    assert ours == pytest.approx(poly_mmd(x, y).item(), rel=1e-9)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_recall_density_coverage_agree_with_loops(k: int) -> None:
    x, y = draws(12, 3, 0, 0.5, 1.2), draws(15, 3, 1)

    def distance(a: Tensor, b: Tensor) -> float:
        return float((a - b).square().sum().sqrt())

    def reach(points: Tensor, i: int) -> float:
        return sorted(distance(points[i], point) for j, point in enumerate(points) if j != i)[k - 1]

    reach_x, reach_y = [[reach(points, i) for i in range(len(points))] for points in (x, y)]
    expected = {
        Precision: np.mean([any(distance(a, b) <= reach_y[j] for j, b in enumerate(y)) for a in x]),
        Recall: np.mean([any(distance(a, b) <= reach_x[i] for i, a in enumerate(x)) for b in y]),
        Density: np.mean([sum(distance(a, b) <= reach_y[j] for j, b in enumerate(y)) for a in x]) / k,
        Coverage: np.mean([any(distance(a, b) <= reach_y[j] for a in x) for j, b in enumerate(y)]),
    }
    for metric, value in expected.items():
        assert measured(metric(Flat(), k), x, y).compute().item() == pytest.approx(value), metric
    assert 0 < expected[Precision] < 1
    assert 0 < expected[Recall] < 1
    assert 0 < expected[Coverage] < 1


def test_intervals_hold_the_estimates() -> None:
    x, y = draws(16, 3, 0), draws(18, 3, 1)
    for metric in (FrechetDistance(Flat()), KernelDistance(Flat()), Precision(Flat()), Coverage(Flat())):
        estimate = measured(metric, x, y).estimate()
        assert estimate.ci95[0] <= estimate.value <= estimate.ci95[1]
