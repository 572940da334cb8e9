"""Scores of generated images, as torchmetrics classes with jackknife intervals."""

from lit_medgen.metrics.base import Estimate, TwoSampleMetric
from lit_medgen.metrics.diversity import MSSSIMGap, PairwiseMSSSIM, pairwise_ms_ssim
from lit_medgen.metrics.kernel import RBFMMD, LinearMMD
from lit_medgen.metrics.texture import SeamRatio, Sharpness

__all__ = [
    "RBFMMD",
    "Estimate",
    "LinearMMD",
    "MSSSIMGap",
    "PairwiseMSSSIM",
    "SeamRatio",
    "Sharpness",
    "TwoSampleMetric",
    "pairwise_ms_ssim",
]
