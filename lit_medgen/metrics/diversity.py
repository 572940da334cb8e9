r"""Multi-scale structural similarity of all pairs of images, and scores made of it.

MS-SSIM (Wang, Simoncelli, Bovik 2003) is prod_j cs_j^beta_j times the luminance term of the coarsest scale, with
local means and variances under a Gaussian window and scales a factor of 2 apart. Means and variances belong to
one image, only the covariance to a pair, so all pairs of n images cost n passes for the former and n^2 for the
latter alone; windows are banded matrices, one product for each axis.

Small volumes have room for fewer scales: the window is 11 voxels (sigma 1.5) where five scales fit, else 7, and
scales that are smaller than the window are left out, their exponents with them (the rest is scaled to sum to 1).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lit_medgen.metrics.base import TwoSampleMetric, mean_off_diagonal

BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
C1, C2 = 0.01**2, 0.03**2  # for values in [0, 1]
PAIR_VOXELS = 2**25
"""Pairs are tiled so that a tile holds about this many voxels (128 MiB in float32)."""


def scales_and_window(size: tuple[int, ...]) -> tuple[int, int]:
    """How many scales fit an image of this size, and the window's side."""
    window = 11 if min(size) // 2 ** (len(BETAS) - 1) >= 11 else 7
    fitting = [j + 1 for j in range(len(BETAS)) if min(size) // 2**j >= window]
    if not fitting:
        raise ValueError(f"images of {size} are too small for MS-SSIM; every side must be at least {window}.")
    return fitting[-1], window


def pairwise_ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """n m: MS-SSIM of every x (n c *s) with every y (m c *s), both in [-1, 1]."""
    x, y = (x.float() + 1) / 2, (y.float() + 1) / 2
    num_scales, window = scales_and_window(tuple(x.shape[2:]))
    betas = torch.tensor(BETAS[:num_scales])
    betas = betas / betas.sum()
    result = x.new_ones(len(x), len(y))
    for j in range(num_scales):
        contrast, similarity = _ssim_terms(x, y, window)
        result *= (similarity if j == num_scales - 1 else contrast).clamp(min=0) ** betas[j]
        pool = functional.avg_pool3d if x.ndim == 5 else functional.avg_pool2d
        x, y = pool(x, 2), pool(y, 2)
    return result


def _ssim_terms(x: Tensor, y: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """n m each: mean contrast-structure term, and mean SSIM, at one scale."""
    mean_x, mean_y = _blur(x, window), _blur(y, window)
    variance_x, variance_y = _blur(x * x, window) - mean_x**2, _blur(y * y, window) - mean_y**2
    contrast, similarity = x.new_empty(len(x), len(y)), x.new_empty(len(x), len(y))
    tile = max(1, PAIR_VOXELS // x[0].numel())
    for i in range(len(x)):
        for j in range(0, len(y), tile):
            k = slice(j, j + tile)
            covariance = _blur(x[i] * y[k], window) - mean_x[i] * mean_y[k]
            cs = (2 * covariance + C2) / (variance_x[i] + variance_y[k] + C2)
            ssim = cs * (2 * mean_x[i] * mean_y[k] + C1) / (mean_x[i] ** 2 + mean_y[k] ** 2 + C1)
            contrast[i, k], similarity[i, k] = cs.flatten(1).mean(1), ssim.flatten(1).mean(1)
    return contrast, similarity


def _blur(x: Tensor, window: int, sigma: float = 1.5) -> Tensor:
    """Gaussian window along every spatial axis, valid places only: n c *s -> n c *(s - window + 1)."""
    offset = torch.arange(window, device=x.device) - window // 2
    weights = torch.exp(-(offset.float() ** 2) / (2 * sigma**2))
    weights = weights / weights.sum()
    for axis in range(2, x.ndim):
        length = x.shape[axis]
        band = x.new_zeros(length - window + 1, length)
        for k, weight in enumerate(weights):
            band.diagonal(k).fill_(float(weight))
        x = torch.tensordot(x, band, dims=([axis], [1])).movedim(-1, axis)
    return x


class PairwiseMSSSIM(TwoSampleMetric):
    """Mean MS-SSIM of two different samples: 1 means all alike. Compare it with real images' own value."""

    def statistics(self, samples: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Similarity of all pairs within each set."""
        num_scales, window = scales_and_window(tuple(samples.shape[2:]))
        self.features = f"voxels in [0, 1], {num_scales} scales, Gaussian window {window} (sigma 1.5)"
        return {"xx": pairwise_ms_ssim(samples, samples), "yy": pairwise_ms_ssim(real, real)}

    def score(self, statistics: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
        """The score of the samples x and real images y (indices)."""
        return float(mean_off_diagonal(statistics["xx"][x][:, x]))


class MSSSIMGap(PairwiseMSSSIM):
    """How far the samples' pairwise MS-SSIM is from that of real images: |mean xx' - mean yy'|."""

    def score(self, statistics: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
        """The score of the samples x and real images y (indices)."""
        samples = mean_off_diagonal(statistics["xx"][x][:, x])
        return float((samples - mean_off_diagonal(statistics["yy"][y][:, y])).abs())
