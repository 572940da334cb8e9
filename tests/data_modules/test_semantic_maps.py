"""Label maps of CT slices: bands of HU, lungs, nodules; on drawn slices and on real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from data_modules.lidc.semantic_maps import (
    CLASSES,
    FIRST_NODULE,
    LUNG,
    PRESETS,
    _filled,
    body_mask,
    label_map,
    lung_mask,
    smoothed,
)
from lit_medgen.images.dicom import open_series
from lit_medgen.images.dicom_slices import open_slices

SPACING_MM = 1.5
SIDE = 256
THESIS, CODE = PRESETS["thesis"], PRESETS["code"]


def ellipse(row: float, column: float, height: float, width: float) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    inside: np.ndarray = ((rows - row) / height) ** 2 + ((columns - column) / width) ** 2 < 1
    return inside


BODY = ellipse(128, 128, 80, 110)
LUNGS = ellipse(125, 85, 50, 30) | ellipse(125, 171, 50, 30)
WINDPIPE = ellipse(120, 128, 6, 6)
VESSEL = ellipse(120, 80, 3, 3)
BONE = ellipse(185, 128, 10, 12)
TABLE = ellipse(222, 128, 4, 100)


def chest(lungs: bool = True, seed: int = 0) -> np.ndarray:
    """HU of a drawn slice, with noise."""
    hu = np.full((SIDE, SIDE), -1000.0, dtype=np.float32)
    hu[BODY], hu[BONE], hu[WINDPIPE], hu[TABLE] = 40, 500, -990, -100
    hu[BODY & ~ndimage.binary_erosion(BODY, iterations=6)] = -100  # fat
    if lungs:
        hu[LUNGS] = -850
        hu[VESSEL] = 40
    return hu + np.random.default_rng(seed).normal(0, 20, hu.shape).astype(np.float32)


def lungs_of(hu: np.ndarray) -> np.ndarray:
    smooth = smoothed(hu)
    return lung_mask(hu, smooth, SPACING_MM, body_mask(hu, smooth, SPACING_MM))


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_every_tissue_has_its_class() -> None:
    hu = chest()
    labels = label_map(hu, SPACING_MM, THESIS)
    assert dice(labels == LUNG, LUNGS) > 0.98  # the vessel inside is lung
    assert (labels[ndimage.binary_erosion(BONE, iterations=3)] == CLASSES.index("dense tissue")).all()
    muscle = ndimage.binary_erosion(BODY, iterations=9) & ~ndimage.binary_dilation(
        LUNGS | WINDPIPE | BONE, iterations=3
    )
    assert (labels[muscle] == CLASSES.index("soft tissue")).mean() > 0.9  # the noise takes some below 0 HU
    fat = BODY & ~ndimage.binary_erosion(BODY, iterations=4)
    assert (labels[fat] == CLASSES.index("body")).mean() > 0.95
    assert (labels[~ndimage.binary_dilation(BODY, iterations=3)] == 0).all()  # air and table
    assert (labels[ndimage.binary_erosion(WINDPIPE, iterations=2)] == 0).all()


def test_bands_of_both_presets() -> None:
    """HU at the limits of each band, on a body without noise."""
    hu = np.full((SIDE, SIDE), -1000.0, dtype=np.float32)
    hu[BODY] = 40
    values = [-401, -400, -1, 0, 3, 5, 145, 199, 200, 800, 3000]
    hu[128, 100 : 100 + len(values)] = values
    found = {name: label_map(hu, SPACING_MM, preset)[128, 100:111].tolist() for name, preset in PRESETS.items()}
    assert found["thesis"] == [0, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3]
    assert found["code"] == [0, 1, 1, 1, 1, 2, 3, 3, 3, 3, 3]


def test_bands_go_by_the_hu_of_each_pixel() -> None:
    """A box without a body: padding is background, what is darker than the bands is lung, noise as dark as it too."""
    hu = np.array([[-1024, -1017, -850, -401, -400, -1, 0, 199, 200, 3000]], dtype=np.float32).repeat(5, axis=0)
    hu[2, 2] = -1024
    nodule = np.zeros(hu.shape, dtype=bool)
    nodule[:, 6] = True
    found = label_map(hu, SPACING_MM, THESIS, [(nodule, 1.0)], "bands")
    assert found.tolist() == [[0, LUNG, LUNG, LUNG, 1, 1, FIRST_NODULE, 2, 3, 3]] * 5


@pytest.mark.parametrize(
    ("malignancy", "thesis", "code"),
    [(1, 5, 5), (2, 5, 5), (2.5, 5, 6), (3, 6, 6), (3.25, 7, 6), (3.5, 7, 7), (4, 7, 7), (5, 7, 7)],
)
def test_class_of_a_nodule(malignancy: float, thesis: int, code: int) -> None:
    assert (THESIS.nodule_class(malignancy), CODE.nodule_class(malignancy)) == (thesis, code)


def test_the_most_malignant_nodule_stays_on_top() -> None:
    first, second = ellipse(110, 90, 6, 6), ellipse(114, 90, 6, 6)
    nodules = [(second, 5.0), (first, 1.0)]
    labels = label_map(chest(), SPACING_MM, THESIS, nodules)
    assert (labels[second] == FIRST_NODULE + 2).all()
    assert (labels[first & ~second] == FIRST_NODULE).all()


def test_a_slice_without_lungs_has_none() -> None:
    hu = chest(lungs=False)
    assert not lungs_of(hu).any()


def test_bowel_gas_is_no_lung() -> None:
    hu = chest(lungs=False)
    hu[ellipse(100, 150, 15, 20)] = -995
    assert not lungs_of(hu).any()


def test_nothing_but_air_is_background() -> None:
    assert not label_map(np.full((SIDE, SIDE), -1000.0, np.float32), SPACING_MM, THESIS).any()


@pytest.mark.parametrize("cut", [0, 30, 54, 70])
def test_lungs_that_the_field_of_view_cuts_open(cut: int) -> None:
    """With no wall left beside it, a lung is open to the edge of the image."""
    labels = label_map(chest()[:, cut:], SPACING_MM, THESIS)
    assert dice(labels == LUNG, LUNGS[:, cut:]) > 0.98


@pytest.mark.parametrize("radius", [110, 90, 80])
def test_lungs_in_a_round_field_of_view(radius: int) -> None:
    hu, field = chest(), ellipse(128, 128, radius, radius)
    hu[~field] = -1024
    assert dice(label_map(hu, SPACING_MM, THESIS) == LUNG, LUNGS & field) > 0.98


def test_a_cushion_is_no_lung() -> None:
    """As dark as lung and cut by the field of view, but not between walls of the body."""
    hu = chest()
    hu[212:, 40:216] = -860
    labels = label_map(hu, SPACING_MM, THESIS)
    assert not (labels[212:] == LUNG).any()
    assert dice(labels == LUNG, LUNGS) > 0.98


@pytest.mark.parametrize("seed", range(5))
def test_the_fill_is_that_of_a_polygon(seed: int) -> None:
    from skimage.draw import polygon2mask
    from skimage.measure import find_contours

    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(60, 70)), 4)
    outlines = find_contours(np.pad(field, 1, constant_values=1.0), 0.0)
    assert outlines
    for outline in outlines:
        np.testing.assert_array_equal(_filled(outline, (62, 72)), polygon2mask((62, 72), outline))


@pytest.mark.data
@pytest.mark.parametrize("preset", PRESETS)
def test_lungs_of_the_real_series(preset: str, shared_data: Path) -> None:
    """The upper half of a thorax: two lungs in every slice below the apex, none above, and all classes of tissue."""
    series = open_series(sorted((shared_data / "lungct" / "dicom").rglob("*.dcm")))
    area_ml = []
    for one in series.slices[::6]:
        labels = label_map(one.read(), one.spacing_mm[0], PRESETS[preset])  # type: ignore[index]
        assert set(np.unique(labels)) >= {0, 1, 2, 3}
        lungs = labels == LUNG
        area_ml.append(lungs.sum() * one.spacing_mm[0] ** 2 / 100)
        if area_ml[-1] > 0:
            parts = np.bincount(ndimage.label(lungs)[0].ravel())[1:]
            assert (parts > 0.1 * parts.max()).sum() == 2, one.path.name
    assert (np.diff(area_ml) <= 0).all()  # they taper
    assert area_ml[0] > 250
    assert area_ml[6] > 10
    assert area_ml[7:] == [0, 0]


@pytest.mark.data
def test_slices_with_odd_rescale_and_padding_have_lungs(shared_data: Path) -> None:
    paths = sorted((shared_data / "lungct" / "dicom_single_slices").rglob("*.dcm"))
    assert len(paths) == 10
    for path in paths:
        (one,) = open_slices(path)
        hu = one.read().clip(-1024)
        assert -1050 < np.percentile(hu, 2) < -950, path.name
        labels = label_map(hu, one.spacing_mm[0], THESIS)
        assert 0.02 < (labels == LUNG).mean() < 0.4, path.name
