"""What of a volume is background and what is foreground, by its intensities: robust to outliers and to ringing."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

LEVELS = 512
"""Bins of the histogram in which the background is looked for."""
BACKGROUND_SHARE = 0.1
"""Of a volume's voxels, in the one level that is the background around a head or brain."""
UNDERSHOOT = 0.1
"""What dips below a background may weigh this share of what rises above it: ringing weighs about a hundredth, and
half of a z-scored brain lies below its zero."""
SPECK = 1e-3
"""Parts of the foreground smaller than this share of the largest are specks, such as hot voxels in the air."""
EVEN_RANGE = 0.01
EVEN, EVEN_INSIDE = 0.999, 0.99
"""A volume is nearly constant if that share of its voxels, or of its foreground, lies within `EVEN_RANGE` of the range:
around an outlier they do, while a brain of 100 mL still fills 0.6 % of a cube of 256 mm and has contrast."""

LABEL_LEVELS = 16
"""Whole numbers that a volume may consist of for it to be looked at as a label map."""


def low_end(voxels: np.ndarray, percentile: float) -> float:
    """The value of a volume that becomes 0.

    It is 0, or the one level above it that a tenth of the voxels have and few go below. Of volumes with negative voxels
    it is the level of their background if there is one with no more below it than ringing, as around a resampled
    brain; else (z-scores, a box of CT) the lower percentile.

    Args:
        voxels: of any shape, finite.
        percentile: of the upper end; the lower one is as far from 0.
    """
    low, high = map(float, np.percentile(voxels, [100 - percentile, percentile]))
    if not low < min(high, 0.0):
        flat = 0 < low < high and np.mean(voxels <= low) >= BACKGROUND_SHARE
        return low if flat else min(low, 0.0)  # of what is not negative, but for a few voxels, 0
    within = voxels.clip(low, high)  # an outlier must not weigh
    counts, edges = np.histogram(within, LEVELS, (low, high))
    mode = counts.argmax()
    if counts[mode] < BACKGROUND_SHARE * voxels.size:
        return low
    at_mode = (voxels >= edges[mode]) & (voxels <= edges[mode + 1])
    level = float(np.median(voxels[at_mode]))
    below, above = (level - within[within < level]).sum(), (within[within > level] - level).sum()
    if below < UNDERSHOOT * above:
        return min(level, 0.0)
    return float(np.percentile(voxels[~at_mode], 100 - percentile))


def inner_background(voxels: np.ndarray, base: float) -> np.ndarray:
    """Where a volume has the value of its background if that is not its lowest, as around a z-scored brain.

    It is then the one value of most of the volume's border.
    """
    border = np.concatenate([np.take(voxels, end, axis).ravel() for axis in range(voxels.ndim) for end in (0, -1)])
    values, counts = np.unique(border, return_counts=True)
    level = values[counts.argmax()]
    found: np.ndarray = voxels == level
    return found if level > base and counts.max() > border.size / 2 else np.zeros_like(found)


def without_specks(mask: np.ndarray) -> np.ndarray:
    """The mask without its smallest parts, so that a hot voxel in the air does not move the brain's box."""
    parts, _ = ndimage.label(mask, np.ones([3] * mask.ndim))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    kept: np.ndarray = (sizes > SPECK * sizes.max())[parts]
    return kept


def is_nearly_constant(scaled: np.ndarray, brain: np.ndarray) -> bool:
    """Whether all but a few voxels in [0, 1], or all but a few of the foreground, are of one value."""
    inside = scaled[brain]
    parts = [(scaled, EVEN)]
    if inside.min() < inside.max():  # one level exactly is a drawn shape
        parts.append((inside, EVEN_INSIDE))
    return any(np.ptp(np.quantile(part, [(1 - share) / 2, (1 + share) / 2])) <= EVEN_RANGE for part, share in parts)


def num_levels(voxels: np.ndarray) -> int:
    """How many whole numbers a volume consists of, if they are as few as in a label map; else 0."""
    for some in (voxels.ravel()[:: max(1, voxels.size // 50_000)], voxels):  # a few voxels tell of most volumes
        levels = np.unique(some)
        if len(levels) > LABEL_LEVELS or (levels != levels.round()).any():
            return 0
    return len(levels)


def bounding_box(mask: np.ndarray) -> tuple[list[int], list[int]]:
    """First and one past the last index along each axis where the mask is true."""
    found = [
        np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis))) for axis in range(mask.ndim)
    ]
    return [int(f[0]) for f in found], [int(f[-1]) + 1 for f in found]
