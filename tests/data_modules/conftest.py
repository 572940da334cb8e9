"""Small raw data sets that the tests of data modules share."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_modules.recipes.volumes import Preprocessing
from lit_medgen.images.nifti import write_nifti

SHAPE = (20, 24, 18)  # voxels of 2 mm


@pytest.fixture(scope="session")
def small() -> Preprocessing:
    """A grid onto which a small head fits; its three sizes differ, so that axes cannot be mistaken."""
    return Preprocessing(size=(10, 12, 9), field_of_view_mm=(40.0, 48.0, 36.0))


@pytest.fixture(scope="session")
def write_head() -> Callable[[Path, int], Path]:
    """Writes one small head: an ellipsoid of noise, another one for every seed."""

    def write(path: Path, seed: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        place = (np.indices(SHAPE).T - np.array(SHAPE) / 2) / (np.array(SHAPE) * 0.4)
        inside = (place**2).sum(-1).T < 1
        voxels = np.random.default_rng(seed).integers(50, 200, SHAPE) * inside
        write_nifti(path, voxels.astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
        return path

    return write


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory, write_head: Callable[[Path, int], Path]) -> Path:
    """Twelve people with two visits each, and their table: age (one unknown) and sex. Read only."""
    root = tmp_path_factory.mktemp("cohort")
    with (root / "participants.tsv").open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["participant_id", "age", "sex"])
        for person in range(12):
            table.writerow([f"sub-{person:02}", "n/a" if person == 3 else 50 + person, "FM"[person % 2]])
            for visit in (1, 2):
                write_head(root / f"sub-{person:02}" / f"sub-{person:02}_ses-{visit}_T1w.nii.gz", 2 * person + visit)
    return root
