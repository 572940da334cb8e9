"""Label maps of chest CT slices, from which LSDM makes images: eight classes by HU bands, lungs and nodules.

    0 background   1 body   2 soft tissue   3 dense tissue   4 lung   5, 6, 7 nodule, by malignancy

Lungs follow the thesis (section 4.3): k-means parts dark from bright, morphology cleans the dark, marching squares draw
its outline, and what the outline encloses is lung, vessels with it. `thesis` and `code` are the two sets of numbers
that the thesis and its public code give. Images are HU, rows columns; spacing is that of pixels, mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage
from scipy.cluster.vq import kmeans2

from data_modules.lidc.morphology import closed, convex_hull, dilated, eroded, holes_filled, opened

CLASSES = (
    "background",
    "body",
    "soft tissue",
    "dense tissue",
    "lung",
    "nodule, benign",
    "nodule, indeterminate",
    "nodule, malignant",
)
LUNG, FIRST_NODULE = 4, 5
PresetName = Literal["thesis", "code", "alike"]
Segmentation = Literal["lungs", "bands"]

PADDING_HU = -1018.0  # air has noise and lies above on average
SEED_HU = -850.0, 50.0  # lung and tissue, where k-means starts
NUM_CLUSTERED = 20_000  # pixels are enough for two means
DARKEST_TISSUE_HU = -200.0  # fat is brighter still
GAS_HU = -960.0, -905.0  # bowel and windpipe hold air, lungs air and tissue; of large regions and small ones
SMALL_MM2 = 900.0  # no windpipe is larger; its rim makes it less dark
SMALLEST_LUNG_MM2 = 60.0
SMALLEST_BODY_MM2 = 5000.0


@dataclass(frozen=True)
class Preset:
    """The numbers of a source."""

    window: tuple[float, float]  # HU that are kept, of image and map
    bands: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
    """HU of body, soft and dense tissue; where they overlap, the later one counts."""
    steps: tuple[float, float]  # malignancy from which a nodule is indeterminate, and above which it is malignant

    def nodule_class(self, malignancy: float) -> int:
        """5, 6 or 7."""
        low, high = self.steps
        return FIRST_NODULE + (malignancy >= low) + (malignancy > high)


PRESETS: dict[PresetName, Preset] = {
    # Below, at and above 3: section 4.3 and figure 4.1.
    "thesis": Preset((-1024, 800), ((-400, 0), (0, 200), (200, 800)), (3, 3)),
    # Medians of several readers may be halves: [2.5, 3.5) is the middle.
    "code": Preset((-1350, 150), ((-400, 150), (5, 145), (145, 150)), (2.5, float(np.nextafter(3.5, 0)))),
    # As the thesis, but all nodules are of one class: the map does not tell malignancy, so that it can be asked for.
    "alike": Preset((-1024, 800), ((-400, 0), (0, 200), (200, 800)), (1, 5)),
}


def label_map(
    image: np.ndarray,
    spacing_mm: float,
    preset: Preset,
    nodules: Sequence[tuple[np.ndarray, float]] = (),
    segmentation: Segmentation = "lungs",
) -> np.ndarray:
    """Classes of a slice, uint8.

    Args:
        image: HU, rows columns.
        spacing_mm: of pixels.
        preset: bands and classes.
        nodules: mask, rows columns, and malignancy of each nodule; the most malignant stays on top.
        segmentation: "lungs" looks for body and lungs. "bands" goes by each pixel's HU alone, for boxes, which show
            no whole body: what lies between padding (-1024 HU, three pixels wide or more) and the bands is lung then.
    """
    clipped = image.clip(*preset.window)
    if segmentation == "bands":
        body, lungs = np.ones(image.shape, dtype=bool), ~_padding(image) & (image < preset.bands[0][0])
    else:
        smooth = smoothed(image)
        body = body_mask(image, smooth, spacing_mm)
        lungs = lung_mask(image, smooth, spacing_mm, body)
    labels = np.zeros(image.shape, dtype=np.uint8)
    for label, (low, high) in enumerate(preset.bands, start=1):
        labels[body & (clipped >= low) & (clipped <= high)] = label
    labels[lungs] = LUNG
    for mask, malignancy in sorted(nodules, key=lambda nodule: nodule[1]):
        labels[mask] = preset.nodule_class(malignancy)
    return labels


def _padding(image: np.ndarray) -> np.ndarray:
    """Pixels of padding, rows columns, bool; single dark pixels are noise."""
    reach = 3
    dark = np.pad(image <= PADDING_HU, reach, mode="edge")  # it goes on beyond the edge
    opened: np.ndarray = ndimage.binary_opening(dark, np.ones((3, 3)))[reach:-reach, reach:-reach]
    return opened


def smoothed(image: np.ndarray) -> np.ndarray:
    """HU without most of their noise, which masks of body and lungs are made of."""
    smooth: np.ndarray = ndimage.gaussian_filter(image.clip(-1024, 800).astype(np.float32), 1.0)
    return smooth


def body_mask(image: np.ndarray, smooth: np.ndarray, spacing_mm: float) -> np.ndarray:
    """The inside of the skin; arms are parts of it, the table is not. Nothing where nothing is large enough."""
    solid = opened(image > -400, 3 / spacing_mm)  # the table's shell is thinner
    labels, _ = ndimage.label(solid)
    area = np.bincount(labels.ravel())[1:] * spacing_mm**2
    large = np.concatenate([[False], area >= max(SMALLEST_BODY_MM2, 0.1 * area.max(initial=0))])
    walls = large[labels]
    filled = holes_filled(walls)
    return filled | _open_lungs(smooth, spacing_mm, walls, filled)


def _open_lungs(smooth: np.ndarray, spacing_mm: float, walls: np.ndarray, filled: np.ndarray) -> np.ndarray:
    """What is as dark as lung between walls that the field of view cuts open; cushions lie outside their hull."""
    nothing = np.zeros(smooth.shape, dtype=bool)
    dark = (smooth > GAS_HU[0]) & (smooth < -400) & ~filled
    if not walls.any() or np.count_nonzero(dark) * spacing_mm**2 < SMALL_MM2:
        return nothing
    dark = opened(dark, 3 / spacing_mm)
    if np.count_nonzero(dark) * spacing_mm**2 < SMALL_MM2:
        return nothing
    # Near the edge of the image, or near padding, which has no noise and is as dark as can be.
    cut = _large_at(dark, dilated(smooth <= PADDING_HU, 6 / spacing_mm, outside=True), spacing_mm)
    if not cut.any():
        return nothing
    between = _large_at(cut & convex_hull(walls), cut, spacing_mm)
    if not between.any():
        return nothing
    between = dilated(between, 3 / spacing_mm) & (smooth > GAS_HU[0])
    return holes_filled(walls | between) & ~filled


def _large_at(mask: np.ndarray, start: np.ndarray, spacing_mm: float) -> np.ndarray:
    """The regions of a mask that reach a start, and that no windpipe and no fold of clothes has in size."""
    labels, _ = ndimage.label(mask)
    wanted = np.bincount(labels.ravel()) * spacing_mm**2 >= SMALL_MM2
    wanted &= np.bincount(labels[start], minlength=len(wanted)) > 0
    wanted[0] = False
    return wanted[labels]


def lung_mask(image: np.ndarray, smooth: np.ndarray, spacing_mm: float, body: np.ndarray) -> np.ndarray:
    """Lungs, rows columns, bool."""
    lungs = np.zeros(image.shape, dtype=bool)
    if not body.any():
        return lungs
    threshold = _threshold(smooth[body])
    radius = 1.5 / spacing_mm
    dark = opened(body & (smooth < threshold), radius)
    # Each outline in an image of its own, so that one lung's never takes in the other's.
    for label, window in enumerate(ndimage.find_objects(labels := ndimage.label(dark)[0]), start=1):
        window = tuple(slice(max(part.start - 3, 0), part.stop + 3) for part in window)
        region = labels[window] == label
        if _is_lung(region, image[window], spacing_mm):
            lungs[window] |= _enclosed(region, smooth[window], threshold, radius)
    return lungs & body


def _threshold(values: np.ndarray) -> float:
    """HU between the means of dark and bright, by k-means; between the usual ones where little is dark.

    In a slice with a tip of lung, the two means are those of fat and muscle.
    """
    usual = sum(SEED_HU) / 2
    if not values.min() < usual < values.max():
        return usual
    some = values[:: max(1, len(values) // NUM_CLUSTERED), None]
    means, _ = kmeans2(some, np.array(SEED_HU)[:, None], minit="matrix")
    low, high = sorted(means.ravel().tolist())
    return usual if low > DARKEST_TISSUE_HU else (low + high) / 2


def _is_lung(region: np.ndarray, image: np.ndarray, spacing_mm: float) -> bool:
    """Whether a dark region is lung by its size, and darker than fat but no mere gas."""
    core = eroded(region, 1.5 / spacing_mm)
    area = region.sum() * spacing_mm**2
    if area < SMALLEST_LUNG_MM2 or not core.any():
        return False
    return bool(GAS_HU[int(area < SMALL_MM2)] < np.median(image[core]) < -400)


def _enclosed(region: np.ndarray, smooth: np.ndarray, threshold: float, radius: float) -> np.ndarray:
    """What the marching-squares outline of a region encloses, after vessels at its rim are closed over."""
    from skimage.measure import find_contours

    near = dilated(region, radius)
    alone = np.where(near & (smooth != threshold), smooth, threshold + 100)
    outlines = find_contours(np.pad(alone, 1, constant_values=threshold + 100), threshold)
    outer = max(outlines, key=lambda outline: float(np.ptp(outline, axis=0).prod()))  # the others are of vessels
    return closed(_filled(outer - 1, region.shape), 2 * radius)


def _filled(outline: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Pixels inside an outline of marching squares, whose points lie on the lines of the grid.

    Along a row of pixels, inside and outside change where the outline crosses it. (A general polygon fill, which
    tests every pixel against every edge, takes forty times as long.)
    """
    rows, columns = outline[:-1].T
    crosses = rows == rows.round()
    changes = np.zeros((shape[0], shape[1] + 1), dtype=np.int32)  # the outline may close beyond the last column
    np.add.at(changes, (rows[crosses].astype(int), np.ceil(columns[crosses]).astype(int)), 1)
    return changes.cumsum(axis=1)[:, :-1] % 2 == 1
