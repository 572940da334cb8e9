"""Maximum mean discrepancy, in the two forms the field uses (Gretton et al. 2012, JMLR 13).

    biased    mean k(x, x') + mean k(y, y') - 2 mean k(x, y), diagonals included    (eq. 5)
    unbiased  the same without diagonals                                           (eq. 3)

Papers of the brain-GAN line report the biased form with a linear kernel on voxels, which is the squared distance
of the two mean images; MONAI's is linear and unbiased. The two are not comparable, so kernel and estimator are
part of the name. Voxels are taken in [0, 1], as those papers do.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lit_medgen.batch import Images
from lit_medgen.metrics.known import products
from lit_medgen.metrics.pairs import PairMetric


class MMD(PairMetric):
    """Of kernel matrices xx, yy and xy, which a subclass gives."""

    best = "lower"
    conservative = True

    def _of_means(self, means: Mapping[str, Tensor]) -> Tensor:
        return means["xx"] + means["yy"] - 2 * means["xy"]


class LinearMMD(MMD):
    """Biased, linear kernel: |mean x - mean y|^2."""

    features = "voxels in [0, 1], linear kernel, biased estimator"
    limits = (0.0, float("inf"))
    diagonal = True

    def statistics(self, samples: Images, real: Images, together: Tensor | None = None) -> dict[str, Tensor]:
        """Gram matrices, float64 (differences of large sums)."""
        pairs = {"xx": (samples, samples), "yy": (real, real), "xy": (samples, real)}
        return {name: self.known(products, x, y, self.known.device) for name, (x, y) in pairs.items()}


class RBFMMD(LinearMMD):
    """Unbiased, kernel exp(-|x - y|^2 / (2 h^2)); h^2 the median squared distance of two real images."""

    features = "voxels in [0, 1], RBF kernel, median real-real distance as bandwidth, unbiased estimator"
    limits = PairMetric.limits
    diagonal = False

    def statistics(self, samples: Images, real: Images, together: Tensor | None = None) -> dict[str, Tensor]:
        """Kernel matrices of samples, of real images, and of both against each other."""
        gram = super().statistics(samples, real)
        of = {"x": gram["xx"].diagonal(), "y": gram["yy"].diagonal()}
        apart = {name: of[name[0]][:, None] + of[name[1]] - 2 * matrix for name, matrix in gram.items()}
        bandwidth = 2 * apart["yy"][*torch.triu_indices(len(real), len(real), 1)].median()
        return {name: torch.exp(-squared.clamp(min=0) / bandwidth) for name, squared in apart.items()}
