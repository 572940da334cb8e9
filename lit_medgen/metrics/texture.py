"""Sharpness, and the seams of images made in parts."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from lit_medgen.batch import Images
from lit_medgen.metrics.base import TwoSampleMetric
from lit_medgen.metrics.known import Known, of_each


class Sharpness(TwoSampleMetric):
    """Mean absolute difference of a voxel from its neighbours, relative to real images: 1 is as sharp as real."""

    features = "voxels, absolute differences of neighbours along every axis"
    limits = (0.0, float("inf"))

    def statistics(self, samples: Images, real: Images, together: Tensor | None = None) -> dict[str, Tensor]:
        """Mean difference of every image."""
        device = self.known.device
        return {name: self.known(of_each, z, _roughness, device) for name, z in (("x", samples), ("y", real))}

    def score(self, statistics: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
        """The score of the samples x and real images y (indices)."""
        return float(statistics["x"][x].mean() / statistics["y"][y].mean())


class SeamRatio(TwoSampleMetric):
    """Step between slices of different stages over that between slices of one stage, relative to real: 1 is seamless.

    The step is the mean absolute difference of neighbouring slices; real images are measured at the same indices.

    Args:
        axis: spatial axis along which the slices are stacked.
        borders: i where slices i and i + 1 were made in different stages.
        known: as of every `TwoSampleMetric`.
    """

    limits = (0.0, float("inf"))

    def __init__(self, axis: int, borders: list[int], known: Known | None = None) -> None:
        super().__init__(known)
        self.axis, self.borders = axis, borders
        self.features = f"voxels, {len(borders)} borders between stages along axis {axis}"

    def statistics(self, samples: Images, real: Images, together: Tensor | None = None) -> dict[str, Tensor]:
        """Mean step at every index along the axis, for every image."""
        device = self.known.device
        steps = _steps(self.axis + 2)
        return {name: self.known(of_each, z, steps, device) for name, z in (("x", samples), ("y", real))}

    def score(self, statistics: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
        """The score of the samples x and real images y (indices)."""
        return float(self._ratio(statistics["x"][x]) / self._ratio(statistics["y"][y]))

    def _ratio(self, steps: Tensor) -> Tensor:
        at_border = torch.zeros(steps.shape[1], dtype=torch.bool)
        at_border[self.borders] = True
        return steps[:, at_border].mean() / steps[:, ~at_border].mean()


@cache  # one function for each axis, so that its results can be shared
def _steps(dim: int) -> Callable[[Tensor], Tensor]:
    """A function that gives the mean absolute difference of neighbours at every index of a dimension, n m."""
    return lambda images: images.diff(dim=dim).abs().movedim(dim, 1).flatten(2).mean(2)


def _roughness(images: Tensor) -> Tensor:
    """n: mean absolute difference of neighbours, averaged over the axes."""
    axes = range(2, images.ndim)
    return torch.stack([images.diff(dim=axis).abs().flatten(1).mean(1) for axis in axes]).mean(0)
