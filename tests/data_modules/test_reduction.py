"""Slices with fewer pixels than delivered: means, nodules that survive, and the same places in the world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny_lidc import SIDE, SPACING_MM, write_tiny

from data_modules import CTSlices, LIDCDataModule
from data_modules.lidc.reduction import block_side, reduced_affine, reduced_hu, reduced_labels, reduced_position
from data_modules.lidc.semantic_maps import CLASSES, FIRST_NODULE
from lit_medgen.errors import InputError

LABELS = arrays(np.uint8, (12, 24), elements=st.integers(0, len(CLASSES) - 1))


@given(labels=LABELS, k=st.sampled_from([1, 2, 3, 4]))
@settings(deadline=None, database=None)
def test_every_nodule_survives_and_other_classes_go_by_majority(labels: np.ndarray, k: int) -> None:
    """As max-pooling of the one-hot map with the most malignant class first."""
    found = reduced_labels(labels, k)
    one_hot = torch.from_numpy(np.stack([labels == c for c in range(len(CLASSES))])).float()
    there = torch.nn.functional.max_pool2d(one_hot, k).numpy() > 0
    share = torch.nn.functional.avg_pool2d(one_hot, k).numpy()
    for row, column in np.ndindex(*found.shape):
        nodules = np.flatnonzero(there[FIRST_NODULE:, row, column])
        label = found[row, column]
        if len(nodules):
            assert label == FIRST_NODULE + nodules.max()
        else:
            assert share[label, row, column] == share[:, row, column].max()


@given(image=arrays(np.int16, (12, 24), elements=st.integers(-1024, 3071)), k=st.sampled_from([1, 2, 4]))
@settings(deadline=None, database=None)
def test_hu_are_means(image: np.ndarray, k: int) -> None:
    found = reduced_hu(image, k)
    assert found.dtype == np.int16
    expected = torch.nn.functional.avg_pool2d(torch.from_numpy(image).double()[None], k)[0].numpy()
    assert np.abs(found - expected).max() <= 0.5


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_middle_of_a_block_stays_where_it_is(k: int) -> None:
    random = np.random.default_rng(k)
    affine = np.vstack([random.normal(size=(3, 4)), [0, 0, 0, 1]])
    column, row = random.uniform(0, 100, 2)
    reduced = [reduced_position(column, k), reduced_position(row, k), 0, 1]
    np.testing.assert_allclose(reduced_affine(affine, k) @ reduced, affine @ [column, row, 0, 1])


@pytest.mark.parametrize("pixels", [(1024, 1024), (500, 500), (256, 128), (256,), (0, 0), (-1, -1)])
def test_a_size_that_is_no_division_is_refused(pixels: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"ct\.pixels is .*512 x 512.*such as \[256, 256\] or \[128, 128\]") as said:
        CTSlices(pixels=pixels)
    assert "\n" not in str(said.value)
    assert block_side((512, 512), (128, 128)) == 4


def test_a_scan_at_half_its_size(tmp_path: Path) -> None:
    """Nodule, spacing and places as at the delivered size, to half a block."""
    write_tiny(tmp_path / "raw", 1)
    both = []
    for pixels in (None, (SIDE // 2, SIDE // 2)):
        ct = CTSlices(size=(SIDE, SIDE), pixels=pixels)
        data = LIDCDataModule(str(tmp_path / "raw"), ct, store_dir=str(tmp_path), num_jobs=1, fractions=(1, 0, 0))
        data.prepare_data()
        data.setup("fit")
        both.append(data)
    whole, half = both
    assert (half.spec.size, half.spec.spacing_mm) == ((SIDE // 2, SIDE // 2), (2 * SPACING_MM, 2 * SPACING_MM))
    assert half.store.folder != whole.store.folder
    for record, other in zip(whole.records["train"], half.records["train"], strict=True):
        maps = [data.store.read(r, name="label_map") for data, r in ((whole, record), (half, other))]
        nodules = [np.argwhere(each >= FIRST_NODULE) for each in maps]
        assert {tuple(each // 2) for each in nodules[0]} == {tuple(each) for each in nodules[1]}
        known = record.facts["nodule"], other.facts["nodule"]
        worlds = [r.affine @ [*place, 0, 1] for r, place in zip((record, other), known, strict=True)]
        np.testing.assert_allclose(*worlds)
        assert other.attributes == pytest.approx(record.attributes, nan_ok=True)
