"""Maximum mean discrepancy, in the two forms the field uses (Gretton et al. 2012, JMLR 13).

    biased    mean k(x, x') + mean k(y, y') - 2 mean k(x, y), diagonals included    (eq. 5)
    unbiased  the same without diagonals                                           (eq. 3)

Papers of the brain-GAN line report the biased form with a linear kernel on voxels, which is the squared distance
of the two mean images; MONAI's is linear and unbiased. The two are not comparable, so kernel and estimator are
part of the name. Voxels are taken in [0, 1], as those papers do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_medgen.metrics.base import TwoSampleMetric, mean_off_diagonal
from lit_medgen.metrics.known import products


class LinearMMD(TwoSampleMetric):
    """Biased, linear kernel: |mean x - mean y|^2."""

    features = "voxels in [0, 1], linear kernel, biased estimator"
    limits = (0.0, float("inf"))
    conservative = True

    def statistics(self, samples: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Gram matrices, float64 (differences of large sums)."""
        pairs = {"xx": (samples, samples), "yy": (real, real), "xy": (samples, real)}
        return {name: self.known(products, x, y, self.known.device) for name, (x, y) in pairs.items()}

    def score(self, statistics: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
        """The score of the samples x and real images y (indices)."""
        xx, yy, xy = (statistics["xx"][x][:, x], statistics["yy"][y][:, y], statistics["xy"][x][:, y])
        return float(xx.mean() + yy.mean() - 2 * xy.mean())


class RBFMMD(LinearMMD):
    """Unbiased, kernel exp(-|x - y|^2 / (2 h^2)); h^2 the median squared distance of two real images."""

    features = "voxels in [0, 1], RBF kernel, median real-real distance as bandwidth, unbiased estimator"
    limits = TwoSampleMetric.limits

    def statistics(self, samples: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Kernel matrices."""
        gram = super().statistics(samples, real)
        x, y = gram["xx"].diagonal(), gram["yy"].diagonal()
        apart = {"xx": x[:, None] + x - 2 * gram["xx"], "yy": y[:, None] + y - 2 * gram["yy"]}
        apart["xy"] = x[:, None] + y - 2 * gram["xy"]
        upper = torch.triu_indices(len(y), len(y), 1)
        bandwidth = 2 * apart["yy"][upper[0], upper[1]].median()
        return {name: torch.exp(-squared.clamp(min=0) / bandwidth) for name, squared in apart.items()}

    def score(self, statistics: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
        """The score of the samples x and real images y (indices)."""
        return unbiased_mmd(statistics, x, y)


def unbiased_mmd(kernels: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
    """MMD^2 without diagonals, of the kernel matrices xx, yy, xy at the samples x and real images y (indices)."""
    xx, yy, xy = (kernels["xx"][x][:, x], kernels["yy"][y][:, y], kernels["xy"][x][:, y])
    return float(mean_off_diagonal(xx) + mean_off_diagonal(yy) - 2 * xy.mean())
