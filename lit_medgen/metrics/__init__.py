"""Scores of generated images, as torchmetrics classes with jackknife intervals."""

from lit_medgen.metrics.base import Estimate, TwoSampleMetric
from lit_medgen.metrics.diversity import (
    ModeSpread,
    MSSSIMGap,
    NearestTraining,
    PairwiseMSSSIM,
    nearest_by_ms_ssim,
    pairwise_ms_ssim,
)
from lit_medgen.metrics.features import (
    Coverage,
    Density,
    Features,
    FrechetDistance,
    KernelDistance,
    Precision,
    Recall,
    frechet_distance,
)
from lit_medgen.metrics.kernel import RBFMMD, LinearMMD
from lit_medgen.metrics.texture import SeamRatio, Sharpness

__all__ = [
    "RBFMMD",
    "Coverage",
    "Density",
    "Estimate",
    "Features",
    "FrechetDistance",
    "KernelDistance",
    "LinearMMD",
    "MSSSIMGap",
    "ModeSpread",
    "NearestTraining",
    "PairwiseMSSSIM",
    "Precision",
    "Recall",
    "SeamRatio",
    "Sharpness",
    "TwoSampleMetric",
    "frechet_distance",
    "nearest_by_ms_ssim",
    "pairwise_ms_ssim",
]
