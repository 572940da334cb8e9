"""Scores of generated images, as torchmetrics classes with jackknife intervals."""

from lit_medgen.metrics.agreement import AgreementMetric, Correlation, MeanAbsoluteError, Slope
from lit_medgen.metrics.anatomy import VentricleSpread
from lit_medgen.metrics.base import Estimate, TwoSampleMetric
from lit_medgen.metrics.diversity import (
    ModeSpread,
    MSSSIMGap,
    NearestTraining,
    PairwiseMSSSIM,
    PairwiseSSIM,
)
from lit_medgen.metrics.features import (
    Coverage,
    Density,
    Features,
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    Precision,
    Recall,
    frechet_distance,
)
from lit_medgen.metrics.kernel import RBFMMD, LinearMMD
from lit_medgen.metrics.ms_ssim import nearest_by_ms_ssim, pairwise_ms_ssim
from lit_medgen.metrics.paired import (
    Consistency,
    PairedMAE,
    PairedMetric,
    PairedMSSSIM,
    PairedPSNR,
    PairedSSIM,
    PerceptualDistance,
)
from lit_medgen.metrics.texture import SeamRatio, Sharpness

__all__ = [
    "RBFMMD",
    "AgreementMetric",
    "Consistency",
    "Correlation",
    "Coverage",
    "Density",
    "Estimate",
    "Features",
    "FrechetDistance",
    "InceptionScore",
    "KernelDistance",
    "LinearMMD",
    "MSSSIMGap",
    "MeanAbsoluteError",
    "ModeSpread",
    "NearestTraining",
    "PairedMAE",
    "PairedMSSSIM",
    "PairedMetric",
    "PairedPSNR",
    "PairedSSIM",
    "PairwiseMSSSIM",
    "PairwiseSSIM",
    "PerceptualDistance",
    "Precision",
    "Recall",
    "SeamRatio",
    "Sharpness",
    "Slope",
    "TwoSampleMetric",
    "VentricleSpread",
    "frechet_distance",
    "nearest_by_ms_ssim",
    "pairwise_ms_ssim",
]
