"""Scores of how different samples are: from each other, from the training people, along the shapes that people have."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lit_medgen.batch import Images
from lit_medgen.metrics.base import RelativeMetric, TwoSampleMetric
from lit_medgen.metrics.known import Known
from lit_medgen.metrics.ms_ssim import BETAS, facts_of, nearest_by_ms_ssim, pairwise_ms_ssim
from lit_medgen.metrics.pairs import PairMetric


class PairwiseMSSSIM(PairMetric):
    """Mean MS-SSIM of two different samples: 1 means all alike. Compare it with real images' own value."""

    of_one_set = True
    max_scales = len(BETAS)
    """Scales, if so many fit."""

    def statistics(self, samples: Images, real: Images, together: Tensor | None = None) -> dict[str, Tensor]:
        """Similarity of all pairs of samples."""
        self.features, self.limits = facts_of(samples, self.max_scales)
        return {"xx": self._likeness(samples, together)}

    def _likeness(self, images: Images, together: Tensor | None = None) -> Tensor:
        similarity: Tensor = self.known(pairwise_ms_ssim, images, images, self.max_scales, together, self.known.device)
        return similarity

    def _of_means(self, means: Mapping[str, Tensor]) -> Tensor:
        return means["xx"]


class PairwiseSSIM(PairwiseMSSSIM):
    """The same at one scale: Wang et al. 2004, "Image Quality Assessment: From Error Visibility to ...", eq. 13."""

    max_scales = 1


class MSSSIMGap(PairwiseMSSSIM):
    """How far the samples' pairwise MS-SSIM is from that of real images: |mean xx' - mean yy'|."""

    of_one_set = False
    best = "lower"
    conservative = True

    def statistics(self, samples: Images, real: Images, together: Tensor | None = None) -> dict[str, Tensor]:
        """Similarity of all pairs within each set."""
        similarity = super().statistics(samples, real, together) | {"yy": self._likeness(real)}
        self.limits = (0.0, self.limits[1] - self.limits[0])
        return similarity

    def _of_means(self, means: Mapping[str, Tensor]) -> Tensor:
        return (means["xx"] - means["yy"]).abs()


class NearestTraining(TwoSampleMetric):
    """Mean MS-SSIM of a sample with the training image most like it; `real` is the training set here.

    Unseen real people have such a value too. Samples above it are nearer to training people than people are.
    """

    against = "train"
    of_one_set = True

    def statistics(self, samples: Images, real: Images, together: Tensor | None = None) -> dict[str, Tensor]:
        """Likeness of every sample to its nearest."""
        features, self.limits = facts_of(samples)
        self.features = f"{features}, {len(real)} training images"
        return {"x": self.known(nearest_by_ms_ssim, samples, real, self.known.device)[1].double()}

    def score(self, statistics: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
        """The score of the samples x."""
        return float(statistics["x"][x].mean())


class SpreadMetric(RelativeMetric):
    """Standard deviation of a statistic of images, relative to real images; 1 is as real. That of one image is 0."""

    min_real = 1e-12  # a single real image has none

    def _summary(self, values: Tensor) -> Tensor:
        return ((values - values.mean(0)).square().sum(0) / max(len(values) - 1, 1)).sqrt()


def _coefficients(images: Tensor, modes: Tensor) -> Tensor:
    """n k: of n c *s along modes, k d."""
    return images.flatten(1) @ modes.to(images.device).T


class ModeSpread(SpreadMetric):
    """Spread along the leading principal components of the training images, relative to real images; 1 is as real.

    The mean over components of the ratio of standard deviations. A model that is deaf to global shape at high noise
    makes sharp images of one head: far below 1 here, while likeness of pairs (MS-SSIM) is hardly higher.

    Args:
        modes: k d, the components of flattened images.
        known: as of every `TwoSampleMetric`.
    """

    statistic = staticmethod(_coefficients)

    def __init__(self, modes: Tensor, known: Known | None = None) -> None:
        super().__init__(known)
        self.arguments = (modes.double(),)
        self.features = f"voxels, {len(modes)} leading principal components of the training people"
