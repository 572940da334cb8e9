"""What the jackknife intervals of scores are worth: their standard errors against the true ones, and their coverage.

Samples and real images are drawn from known Gaussians again and again: of the same distribution (a perfect model), and
of another (mean moved by half a standard deviation, spread 0.7). The true standard error is the spread of the score
over repetitions; the reported one is the jackknife's, before it is cut off where the score ends. Coverage is the share
of 95 % intervals that hold the score's mean.

    python -m benchmarks.intervals [--num 32] [--dimensions 8] [--repetitions 300]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lit_medgen.metrics import (
    RBFMMD,
    Coverage,
    Density,
    FrechetDistance,
    KernelDistance,
    LinearMMD,
    ModeSpread,
    MSSSIMGap,
    PairwiseMSSSIM,
    Precision,
    Recall,
    Sharpness,
    TwoSampleMetric,
)

SIDE = 16
"""Of the images that MS-SSIM is taken of: smooth, since that of noise is 0."""


class Flat:
    """The voxels themselves as features."""

    name = "voxels"

    def __call__(self, images: Tensor) -> Tensor:
        """n d."""
        return images.flatten(1)


def scores(dimensions: int) -> dict[str, Callable[[], TwoSampleMetric]]:
    return {
        "frechet": lambda: FrechetDistance(Flat()),
        "kernel_distance": lambda: KernelDistance(Flat()),
        "precision": lambda: Precision(Flat()),
        "recall": lambda: Recall(Flat()),
        "density": lambda: Density(Flat()),
        "coverage": lambda: Coverage(Flat()),
        "mmd_linear_biased": LinearMMD,
        "mmd_rbf_unbiased": RBFMMD,
        "mode_spread": lambda: ModeSpread(torch.eye(dimensions)),
        "sharpness": Sharpness,
    }


def pictures(num: int, dimensions: int, generator: torch.Generator) -> Tensor:
    """num 1 SIDE SIDE in [-1, 1]: sums of smooth waves with Gaussian weights."""
    frequency = torch.linspace(0.1, 0.5, dimensions)[:, None, None]
    x, y = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    waves = (frequency * x).sin() * (frequency * y).cos()
    weights = torch.randn(num, dimensions, generator=generator)
    return (0.5 * torch.einsum("nd,dxy->nxy", weights, waves)).clamp(-1, 1)[:, None]


def measured(make: Callable[[], TwoSampleMetric], x: Tensor, y: Tensor) -> tuple[float, float]:
    """Value and reported standard error."""
    metric = make()
    metric.update(x, real=False)
    metric.update(y, real=True)
    value, error = metric.with_error()
    return value, error


def summary(found: list[tuple[float, float]]) -> str:
    values, errors = np.array(found).T
    covered = np.mean(np.abs(values - values.mean()) <= 1.96 * errors)
    ratio = errors.mean() / values.std(ddof=1) if values.std() > 0 else math.nan
    return f"{values.mean():.3g} | {values.std(ddof=1):.2g} | {errors.mean():.2g} | {ratio:.2f} | {covered:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=32, help="samples, and real images")
    parser.add_argument("--dimensions", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=300)
    options = parser.parse_args()
    print("| score | model | mean | true error | reported | ratio | coverage |\n|---|---|---|---|---|---|---|")
    for model, moved, spread in (("as real", 0.0, 1.0), ("worse", 0.5, 0.7)):
        found: dict[str, list[tuple[float, float]]] = {}
        generator = torch.Generator().manual_seed(0)
        for repetition in range(options.repetitions):
            x, y = (torch.randn(options.num, 1, options.dimensions, generator=generator) for _ in range(2))
            for name, make in scores(options.dimensions).items():
                found.setdefault(name, []).append(measured(make, moved + spread * x, y))
            if repetition % 3 == 0:  # the slowest
                images = [pictures(options.num, options.dimensions, generator) for _ in range(2)]
                images[0] = (moved / 5 + spread * images[0]).clamp(-1, 1)
                for name, kind in (("ms_ssim", PairwiseMSSSIM), ("ms_ssim_gap", MSSSIMGap)):
                    found.setdefault(name, []).append(measured(kind, images[0], images[1]))
        for name, some in found.items():
            print(f"| {name} | {model} | {summary(some)}", flush=True)


if __name__ == "__main__":
    main()
