"""From a mask to outlines as LIDC-IDRI's readers draw them: closed chains of the pixels just outside."""

from __future__ import annotations

import numpy as np

from data_modules.phantoms.lidc_database import Contour


def outlines_of(mask: np.ndarray, z_mm: float) -> tuple[Contour, ...]:
    """The outlines whose inside is the mask, and those of its holes; none of an empty mask.

    Each point of an outline is a neighbour of the one before, so no pixel's centre lies on a line between two. Marching
    squares finds where the mask's edge crosses the grid, and the pixel outside at each crossing is a point. A hole's
    outline consists of pixels of the hole, which readers of the files take out of the nodule like its inside. An island
    in a hole is lost, since holes are cut out last.

    Args:
        mask: rows columns, bool.
        z_mm: position of the slice.

    Raises:
        ValueError: the mask reaches the edge of the slice, where no outline can lie outside it.
    """
    from skimage.measure import find_contours

    if mask[[0, -1]].any() or mask[:, [0, -1]].any():
        raise ValueError("a mask at the edge of its slice; expected a pixel outside it on every side")
    # Diagonal neighbours in the mask belong together, so the outside between them is no way through.
    crossings = find_contours(mask.astype(float), 0.5, fully_connected="high")
    return tuple(Contour(z_mm, _turns_left(points), _outside(mask, points)[:, ::-1]) for points in crossings)


def _outside(mask: np.ndarray, crossings: np.ndarray) -> np.ndarray:
    """n 2: the pixels (row, column) outside at crossings half-way between two pixels, without repetitions in a row."""
    low, high = np.floor(crossings).astype(np.int64), np.ceil(crossings).astype(np.int64)
    points = np.where(mask[tuple(low.T)][:, None], high, low)
    repeated = (points == np.roll(points, 1, axis=0)).all(axis=1)
    repeated[0] &= not repeated.all()
    return points[~repeated]


def _turns_left(points: np.ndarray) -> bool:
    """Whether a closed line runs as `find_contours` runs around what is high."""
    rows, columns = points.T
    return bool((rows[:-1] * columns[1:] - rows[1:] * columns[:-1]).sum() < 0)
