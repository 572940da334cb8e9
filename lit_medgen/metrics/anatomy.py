"""Measures of brains: how much fluid the ventricles hold, how much tissue there is, and how both spread.

A voxel counts in part where it is tissue or fluid in part: its share rises linearly between two intensities, relative
to the median of the brain, so brightness does not matter. Images are T1-weighted brains without their skull.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_medgen.metrics.diversity import SpreadMetric

TISSUE = 0.2
"""Of an image in [0, 1]: above it lies the brain."""
REGION = ((0.25, 0.75), (0.25, 0.7), (0.4, 0.75))
"""Where the lateral ventricles lie: shares of the brain's extent to the right, to the front and up."""
REGION_OF_SLICE = (REGION[0], (1 - REGION[1][1], 1 - REGION[1][0]))
"""The same in an axial slice, whose second axis goes to the back."""
DARK = 0.8
"""Of the brain's median: below it lies cerebrospinal fluid."""
FLUID = (0.6, 1.0)
"""Of the brain's median: a voxel is all fluid below the first, none above the second."""
SOLID = (0.3, 0.7)
"""Of the brain's median: a voxel is no tissue below the first, all tissue above the second."""


def ventricle_size(brains: Tensor) -> Tensor:
    """n, voxels: how much fluid n 1 x y z in [-1, 1] have in `REGION`.

    A voxel counts by how far it is below `DARK` of the brain's median, so one that is part fluid counts in part. On the
    138 brains of IXI at 4 mm this follows the volume of segmented ventricles with a correlation of 0.96.
    """
    return torch.stack([_fluid(brain[0].double(), (0.0, DARK)) for brain in brains])


def ventricle_volume(images: Tensor, spacing_mm: Sequence[float]) -> Tensor:
    """n: fluid in the ventricles, mL of volumes n 1 x y z along RAS, cm² of axial slices n 1 x y (y to the back).

    On the 138 brains of IXI, against the volumes of segmented ventricles: correlation 0.96 at 2 mm and 0.97 at 4 mm,
    mean absolute error 2.5 and 3.7 mL. In slices the correlation depends on their height: up to 0.88 in one, 0.91 for
    the mean over four slices of a person.

    Args:
        images: in [-1, 1].
        spacing_mm: voxel size.
    """
    return torch.stack([_fluid(image[0].double(), FLUID) for image in images]) * _unit(spacing_mm)


def brain_volume(images: Tensor, spacing_mm: Sequence[float]) -> Tensor:
    """n: grey and white matter, mL of volumes n 1 x y z, cm² of axial slices n 1 x y.

    On the 138 brains of IXI, against segmented volumes: correlation 0.99 at 2 mm and at 4 mm, mean absolute error 26
    and 19 mL.

    Args:
        images: in [-1, 1].
        spacing_mm: voxel size.
    """
    return torch.stack([_tissue(image[0].double()) for image in images]) * _unit(spacing_mm)


def _unit(spacing_mm: Sequence[float]) -> float:
    """mL (10 mm cubed) of a voxel, cm² (10 mm squared) of a pixel."""
    return math.prod(spacing / 10 for spacing in spacing_mm)


def _relative(image: Tensor) -> tuple[Tensor, Tensor]:
    """An image *s in [-1, 1] relative to the median of its tissue, and where the tissue is; zeros without tissue."""
    image = (image + 1) / 2
    tissue = image > TISSUE
    return (image / image[tissue].median() if tissue.any() else torch.zeros_like(image)), tissue


def _tissue(image: Tensor) -> Tensor:
    """Voxels of tissue in an image *s."""
    none, full = SOLID
    return ((_relative(image)[0] - none) / (full - none)).clamp(0, 1).sum()


def _fluid(image: Tensor, levels: tuple[float, float]) -> Tensor:
    """Voxels of fluid in the region of an image *s; one is all fluid below the first level, none above the second."""
    region, tissue = _relative(image)
    if not tissue.any():
        return image.new_zeros(())
    for axis, (low, high) in enumerate(REGION if image.ndim == 3 else REGION_OF_SLICE):
        first, extent = _extent(tissue, axis)
        start = round(first + low * extent)
        region = region.narrow(axis, start, round(first + high * extent) - start + 1)
    full, none = levels
    return ((none - region) / (none - full)).clamp(0, 1).sum()


def _extent(tissue: Tensor, axis: int) -> tuple[int, int]:
    """First index and extent of the tissue along an axis, without the outermost hundredths (stray voxels)."""
    others = [other for other in range(tissue.ndim) if other != axis]
    share = tissue.double().sum(others).cumsum(0)
    within = ((share > 0.01 * share[-1]) & (share < 0.99 * share[-1])).nonzero().flatten()
    return (int(within[0]), int(within[-1] - within[0])) if len(within) else (0, tissue.shape[axis] - 1)


class VentricleSpread(SpreadMetric):
    """Spread of the size of the ventricles, relative to real brains; 1 is as real.

    The ventricles widen with age, more than anything else in a brain does, so a model that makes brains of one age, or
    the mean one, shows here; noise in the middle of the brain may pass for fluid. Volumes must be T1-weighted brains
    along RAS.
    """

    features = "voxels, cerebrospinal fluid in the middle of the brain"
    statistic = staticmethod(ventricle_size)
    on_cpu = True
