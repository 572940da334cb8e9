"""Scores of how different samples are: from each other, from the training people, along the shapes that people have."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lit_medgen.batch import Images
from lit_medgen.metrics.base import TwoSampleMetric
from lit_medgen.metrics.known import Known, of_each
from lit_medgen.metrics.ms_ssim import BETAS, limits_of, nearest_by_ms_ssim, pairwise_ms_ssim, scales_of
from lit_medgen.metrics.pairs import PairMetric

MIN_SPREAD = 1e-12
"""Of real images, where a score is relative to theirs: a single one has none."""


class PairwiseMSSSIM(PairMetric):
    """Mean MS-SSIM of two different samples: 1 means all alike. Compare it with real images' own value."""

    of_one_set = True
    max_scales = len(BETAS)
    """Scales, if so many fit."""

    def statistics(self, samples: Images, real: Images, together: Tensor | None = None) -> dict[str, Tensor]:
        """Similarity of all pairs of samples."""
        num_scales, window = scales_of(samples, self.max_scales)
        self.features = f"voxels in [0, 1], scales: {num_scales}, Gaussian window {window} (sigma 1.5)"
        self.limits = limits_of(num_scales)
        return {"xx": self._likeness(samples, together)}

    def _likeness(self, images: Images, together: Tensor | None = None) -> Tensor:
        similarity: Tensor = self.known(pairwise_ms_ssim, images, images, self.max_scales, together, self.known.device)
        return similarity

    def of_means(self, means: Mapping[str, Tensor]) -> Tensor:
        """The mean similarity of pairs of samples."""
        return means["xx"]


class PairwiseSSIM(PairwiseMSSSIM):
    """The same at one scale: Wang et al. 2004, "Image Quality Assessment: From Error Visibility to ...", eq. 13."""

    max_scales = 1


class MSSSIMGap(PairwiseMSSSIM):
    """How far the samples' pairwise MS-SSIM is from that of real images: |mean xx' - mean yy'|."""

    of_one_set = False
    conservative = True

    def statistics(self, samples: Images, real: Images, together: Tensor | None = None) -> dict[str, Tensor]:
        """Similarity of all pairs within each set."""
        similarity = super().statistics(samples, real, together) | {"yy": self._likeness(real)}
        self.limits = (0.0, self.limits[1] - self.limits[0])
        return similarity

    def of_means(self, means: Mapping[str, Tensor]) -> Tensor:
        """The difference of the two."""
        return (means["xx"] - means["yy"]).abs()


class NearestTraining(TwoSampleMetric):
    """Mean MS-SSIM of a sample with the training image most like it; `real` is the training set here.

    Unseen real people have such a value too. Samples above it are nearer to training people than people are.
    """

    against = "train"
    of_one_set = True

    def statistics(self, samples: Images, real: Images, together: Tensor | None = None) -> dict[str, Tensor]:
        """Likeness of every sample to its nearest."""
        num_scales, window = scales_of(samples)
        self.features = f"voxels in [0, 1], scales: {num_scales}, window {window}, {len(real)} training images"
        self.limits = limits_of(num_scales)
        return {"x": self.known(nearest_by_ms_ssim, samples, real, self.known.device)[1].double()}

    def score(self, statistics: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
        """The score of the samples x."""
        return float(statistics["x"][x].mean())


class ModeSpread(TwoSampleMetric):
    """Spread along the leading principal components of the training images, relative to real images; 1 is as real.

    The mean over components of the ratio of standard deviations. A model that is deaf to global shape at high noise
    makes sharp images of one head: far below 1 here, while likeness of pairs (MS-SSIM) is hardly higher.

    Args:
        modes: k d, the components of flattened images.
        known: as of every `TwoSampleMetric`.
    """

    def __init__(self, modes: Tensor, known: Known | None = None) -> None:
        super().__init__(known)
        self.modes, self.limits = modes.double(), (0.0, float("inf"))
        self.features = f"voxels, {len(modes)} leading principal components of the training people"

    def statistics(self, samples: Images, real: Images, together: Tensor | None = None) -> dict[str, Tensor]:
        """Coefficients of every image on the principal components, n k each."""
        images = {"x": samples, "y": real}
        return {name: self.known(_coefficients, z, self.modes, self.known.device) for name, z in images.items()}

    def score(self, statistics: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
        """The score of the samples x and real images y (indices)."""
        x_spread, y_spread = (spread(statistics[name][chosen]) for name, chosen in (("x", x), ("y", y)))
        return float((x_spread / y_spread.clamp(min=MIN_SPREAD)).mean())


def _coefficients(images: Images, modes: Tensor, device: torch.device) -> Tensor:
    """n k: of n c *s along modes, k d."""
    return of_each(images, lambda some: some.flatten(1) @ modes.to(some.device).T, device)


def spread(z: Tensor) -> Tensor:
    """Standard deviations of n or n d; those of a single image are 0."""
    return ((z - z.mean(0)).square().sum(0) / max(len(z) - 1, 1)).sqrt()
