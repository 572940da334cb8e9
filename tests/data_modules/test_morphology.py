"""Fast morphology is that of scipy and scikit-image, pixel for pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.morphology import convex_hull_image

from data_modules.lidc import morphology

RADII = st.floats(0.3, 9)


def disc(radius: float) -> np.ndarray:
    reach = int(radius)
    rows, columns = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    inside: np.ndarray = rows**2 + columns**2 <= max(radius, 1) ** 2
    return inside


def blobs(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    shape = random.integers(1, 40, 2)
    mask: np.ndarray = ndimage.gaussian_filter(random.normal(size=shape), random.uniform(0.1, 4)) > 0
    return mask


@given(seed=st.integers(0, 2**31), radius=RADII)
@settings(deadline=None, database=None)
def test_discs(seed: int, radius: float) -> None:
    mask, shape = blobs(seed), disc(radius)
    np.testing.assert_array_equal(morphology.eroded(mask, radius), ndimage.binary_erosion(mask, shape))
    np.testing.assert_array_equal(morphology.dilated(mask, radius), ndimage.binary_dilation(mask, shape))
    np.testing.assert_array_equal(morphology.opened(mask, radius), ndimage.binary_opening(mask, shape))
    around = 2 * len(shape)
    endless = ndimage.binary_closing(np.pad(mask, around), shape)[around:-around, around:-around]
    np.testing.assert_array_equal(morphology.closed(mask, radius), endless)


@given(seed=st.integers(0, 2**31), radius=st.floats(1, 9))
@settings(deadline=None, database=None)
def test_dilation_reaches_as_far_as_the_distance(seed: int, radius: float) -> None:
    mask = blobs(seed)
    distance = ndimage.distance_transform_edt(np.pad(~mask, 1))[1:-1, 1:-1]
    np.testing.assert_array_equal(morphology.dilated(mask, radius, outside=True), distance <= radius)


@given(seed=st.integers(0, 2**31))
@settings(deadline=None, database=None)
def test_holes(seed: int) -> None:
    mask = blobs(seed)
    np.testing.assert_array_equal(morphology.holes_filled(mask), ndimage.binary_fill_holes(mask))


@given(seed=st.integers(0, 2**31))
@settings(deadline=None, database=None)
def test_convex_hulls(seed: int) -> None:
    mask = blobs(seed)
    np.testing.assert_array_equal(morphology.convex_hull(mask), convex_hull_image(mask) if mask.any() else mask)


@pytest.mark.parametrize("place", [(0, 0), (4, 7), (9, 9)])
def test_the_hull_of_a_pixel_is_that_pixel(place: tuple[int, int]) -> None:
    mask = np.zeros((10, 10), dtype=bool)
    mask[place] = True
    np.testing.assert_array_equal(morphology.convex_hull(mask), mask)
