"""A small UK Biobank: bulk zips of a few drawn people, and their table."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_modules import Preprocessing, UKBiobankDataModule
from lit_medgen.images.nifti import write_nifti

SHAPE = (20, 24, 18)  # voxels of 2 mm
EIDS = tuple(str(1000223 + 7919 * k) for k in range(12))
T1, FLAIR = "T1/T1_unbiased_brain.nii.gz", "T2_FLAIR/T2_FLAIR_unbiased_brain.nii.gz"
UNUSABLE = "T1/unusable/T1_orig_defaced.nii.gz"
HEADER = ("eid", "31-0.0", "21003-2.0", "21003-3.0", "25003-2.0", "25009-2.0", "25781-2.0")


def brain(seed: int) -> np.ndarray:
    """A small ellipsoid of noise, another one for every seed."""
    place = (np.indices(SHAPE).T - np.array(SHAPE) / 2) / (np.array(SHAPE) * 0.4)
    inside = (place**2).sum(-1).T < 1
    return (np.random.default_rng(seed).integers(50, 200, SHAPE) * inside).astype(np.float32)


def nifti(folder: Path, seed: int) -> bytes:
    """A compressed NIfTI file of it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "image.nii.gz"
    write_nifti(path, brain(seed), np.diag([2.0, 2.0, 2.0, 1.0]))
    content = path.read_bytes()
    path.unlink()
    return content


def write_zip(path: Path, members: Mapping[str, bytes]) -> Path:
    """An archive of these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def write_ukbiobank(root: Path, num: int = 8, flair: bool = False) -> Path:
    """T1 (and FLAIR) zips of `num` people at instance 2, the first of them also at 3; the table; an empty list."""
    root.mkdir(parents=True, exist_ok=True)
    for k, eid in enumerate(EIDS[:num]):
        for instance in (2, 3) if k == 0 else (2,):
            seed = 10 * k + instance
            write_zip(root / f"{eid}_20252_{instance}_0.zip", {T1: nifti(root, seed), "T1/T1.json": b"{}"})
            if flair:
                write_zip(root / f"{eid}_20253_{instance}_0.zip", {FLAIR: nifti(root, 1000 + seed)})
    rows = [(eid, k % 2, 50 + k, 53 + k, 30_000 + 1000 * k, 1_400_000 + k, 999) for k, eid in enumerate(EIDS[:num])]
    write_table(root / "ukb.csv", HEADER, rows)
    (root / "withdrawals.txt").write_text("")
    return root


def write_table(path: Path, header: Any, rows: Any, delimiter: str = ",") -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])


def preprocessing(**options: Any) -> Preprocessing:
    """A grid onto which the small brains fit."""
    return Preprocessing(size=(10, 12, 9), field_of_view_mm=(40.0, 48.0, 36.0), **options)


def module(root: Path, store: Path, **options: Any) -> UKBiobankDataModule:
    """The data module of a small root, with a grid onto which its brains fit."""
    common: dict[str, Any] = {
        "withdrawals": str(root / "withdrawals.txt"),
        "preprocessing": preprocessing(),
        "store_dir": str(store),
        "num_jobs": 1,
        "fractions": (0.6, 0.2, 0.2),
    }
    return UKBiobankDataModule(str(root), **common | options)
