"""Sharpness, and the seams of images made in parts."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_medgen.metrics.base import RelativeMetric
from lit_medgen.metrics.known import Known


def _roughness(images: Tensor) -> Tensor:
    """n: mean absolute difference of neighbours, averaged over the axes."""
    axes = range(2, images.ndim)
    return torch.stack([images.diff(dim=axis).abs().flatten(1).mean(1) for axis in axes]).mean(0)


def _steps(images: Tensor, axis: int) -> Tensor:
    """n m: mean absolute difference of neighbours at every index of a spatial axis."""
    dim = axis + 2
    return images.diff(dim=dim).abs().movedim(dim, 1).flatten(2).mean(2)


class Sharpness(RelativeMetric):
    """Mean absolute difference of a voxel from its neighbours, relative to real images: 1 is as sharp as real."""

    features = "voxels, absolute differences of neighbours along every axis"
    statistic = staticmethod(_roughness)

    def _summary(self, values: Tensor) -> Tensor:
        return values.mean()


class SeamRatio(RelativeMetric):
    """Step between slices of different stages over that between slices of one stage, relative to real: 1 is seamless.

    The step is the mean absolute difference of neighbouring slices; real images are measured at the same indices.

    Args:
        axis: spatial axis along which the slices are stacked.
        borders: i where slices i and i + 1 were made in different stages.
        known: as of every `TwoSampleMetric`.
    """

    statistic = staticmethod(_steps)

    def __init__(self, axis: int, borders: list[int], known: Known | None = None) -> None:
        super().__init__(known)
        self.arguments, self.borders = (axis,), borders
        self.features = f"voxels, {len(borders)} borders between stages along axis {axis}"

    def _summary(self, values: Tensor) -> Tensor:
        at_border = torch.zeros(values.shape[1], dtype=torch.bool)
        at_border[self.borders] = True
        return values[:, at_border].mean() / values[:, ~at_border].mean()
