"""Scans without annotations in the form of LIDC-IDRI's, whole series and single slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_lidc import SIDE, TinyScan

from benchmarks.plain_slices import write_plain
from data_modules import CTSlices, LIDCDataModule
from data_modules.lidc.semantic_maps import LUNG
from lit_medgen.errors import InputError


def module(root: Path, single_slices: bool, **ct: float) -> LIDCDataModule:
    recipe = CTSlices(size=(SIDE, SIDE), single_slices=single_slices, **ct)  # type: ignore[arg-type]
    return LIDCDataModule(str(root), recipe, store_dir=str(root.parent / "store"), num_jobs=1, fractions=(1, 0, 0))


def test_series_and_slices_without_xml_become_slices_without_nodules(tmp_path: Path) -> None:
    """A scan of ten slices, and one slice of each of two more people, all in one folder."""
    for number, kept in ((1, range(10)), (2, [3]), (3, [4])):
        folder = TinyScan(number, change=lambda data, place, kept=kept: place in kept).write(tmp_path / str(number))
        (folder / "069.xml").unlink()
    assert len(write_plain([tmp_path / str(number) for number in (1, 2, 3)], tmp_path / "plain")) == 3
    write_plain([tmp_path / str(number) for number in (1, 2, 3)], tmp_path / "plain")  # again
    data = module(tmp_path / "plain", True, share=1)
    accepted, rejected = data.prepare()
    assert (len(accepted), rejected) == (3, [])
    data.setup("fit")
    records = data.records["train"]
    assert (len(records), len({record.person for record in records})) == (12, 3)
    assert all(np.isnan(record.attributes["malignancy"]) for record in records)
    assert all((data.store.read(record, name="label_map") == LUNG).any() for record in records)


def test_a_single_slice_is_a_broken_download_unless_asked_for(tmp_path: Path) -> None:
    TinyScan(change=lambda data, place: place == 4).write(tmp_path / "raw")
    with pytest.raises(InputError, match="one slice; expected a series of at least two"):
        module(tmp_path / "raw", False).prepare()
