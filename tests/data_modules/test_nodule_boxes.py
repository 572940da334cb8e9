"""Masks as readers' outlines and back, and the real nodules that are written so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from benchmarks.nodule_boxes import Box, fit, write_box, write_boxes
from data_modules import CTSlices, LIDCDataModule
from data_modules.lidc.annotations import HIGHEST, Reading, consensus
from data_modules.lidc.annotations import Contour as Drawn
from data_modules.lidc.semantic_maps import FIRST_NODULE, LUNG
from data_modules.phantoms.outlines import outlines_of

RATINGS = dict.fromkeys(HIGHEST, 4)
BOXES = CTSlices(size=(64, 64), share=0, min_readers=1, segmentation="bands")


def inside_of_outlines(mask: np.ndarray) -> np.ndarray:
    """What the reader of XML files makes of the outlines of a mask, rows columns."""
    drawn = [Drawn(one.z_mm, one.points[:, ::-1], one.inclusion) for one in outlines_of(mask, 7.0)]
    found = np.zeros_like(mask)
    if drawn:
        inside, (row, column, _) = consensus([Reading(0, RATINGS, tuple(drawn))], np.array([7.0]))
        found[row : row + inside.shape[0], column : column + inside.shape[1]] = inside[:, :, 0]
    return found


def has_island(mask: np.ndarray) -> bool:
    """Whether part of a mask lies in a hole of another part."""
    holes = ndimage.binary_fill_holes(mask) & ~mask
    around = ndimage.label(mask, np.ones((3, 3)))[0]
    whole = [ndimage.binary_fill_holes(around == part) for part in range(1, around.max() + 1)]
    return bool(holes.any() and np.sum(whole, axis=0).max() > 1)


@given(inner=arrays(bool, (9, 8), elements=st.booleans()))
@settings(deadline=None, database=None)
def test_outlines_give_the_mask_back(inner: np.ndarray) -> None:
    mask = np.pad(inner, 1)
    assume(not has_island(mask))
    np.testing.assert_array_equal(inside_of_outlines(mask), mask)


def test_a_mask_at_the_edge_has_no_outline() -> None:
    with pytest.raises(ValueError, match="at the edge of its slice"):
        outlines_of(np.ones((3, 3), dtype=bool), 0.0)


def box(rows: int, columns: int, upright: bool = True) -> Box:
    """Noise of lung with a ring-shaped nodule near its upper left corner."""
    hu = np.random.default_rng(rows).integers(-900, -800, (rows, columns, 3)).astype(np.int16)
    mask = np.zeros(hu.shape, dtype=bool)
    mask[4:12, 5:15, 1:] = True
    mask[7:9, 8:12, 2] = False
    hu[mask] = 40
    sign = 1 if upright else -1
    return Box(hu, mask, np.array([[0.5 * sign, 0, 0, 30], [0, 0.5 * sign, 0, -40], [0, 0, 1.25, -100], [0, 0, 0, 1]]))


@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("size", [(43, 50), (64, 64), (91, 70)])
def test_a_box_comes_back_through_dicom_and_xml(size: tuple[int, int], upright: bool, tmp_path: Path) -> None:
    """HU, mask, ratings and places, whether the box is padded or cut, whichever way its rows run."""
    given_box = box(*size, upright)
    small = fit(given_box, 64)
    write_box(tmp_path / "raw" / "LIDC-IDRI-0001", "LIDC-IDRI-0001", "one", small, RATINGS)
    data = LIDCDataModule(str(tmp_path / "raw"), BOXES, store_dir=str(tmp_path), num_jobs=1, fractions=(1, 0, 0))
    data.prepare_data()
    data.setup("fit")
    records = data.records["train"]
    assert len(records) == 2
    for k, record in enumerate(records, start=1):
        hu = data.spec.to_window(torch.from_numpy(data.store.read(record))).numpy().T
        labels = data.store.read(record, name="label_map").T
        if not upright:
            hu, labels = hu[::-1, ::-1], labels[::-1, ::-1]
        np.testing.assert_allclose(hu, small.image[:, :, k], atol=1e-2)
        np.testing.assert_array_equal(labels >= FIRST_NODULE, small.mask[:, :, k])
        assert set(np.unique(labels[small.image[:, :, k] == -1024])) <= {0}
        assert (labels[~small.mask[:, :, k] & (small.image[:, :, k] > -1000)] == LUNG).all()
        column, row = record.facts["nodule"]
        world = np.diag([-1, -1, 1, 1]) @ given_box.affine @ [9.5, 7.5, k, 1]  # the middle of the nodule as given
        np.testing.assert_allclose((record.affine @ [column, row, 0, 1])[:3], world[:3], atol=1e-4)
        assert record.attributes["malignancy"] == 4


@pytest.mark.data
@pytest.mark.slow
def test_all_real_nodules_are_read(shared_data: Path, tmp_path: Path) -> None:
    write_boxes(shared_data / "lungct" / "lidc_nodules", tmp_path / "raw", 64)
    data = LIDCDataModule(str(tmp_path / "raw"), BOXES, store_dir=str(tmp_path))
    accepted, rejected = data.prepare()
    data.setup("fit")
    assert (len(accepted), rejected) == (178, [])
    assert len({record.person for record in data.store.records}) == 144
    assert len(data.store.records) == 2824
