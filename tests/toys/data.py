"""A data set of its own layout: heads with label maps, two coarse images beside each, age, sex, and a known lesion."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_modules import MedicalDataModule, Preprocessing, Rejected, Scan
from data_modules.volume_files import array_path
from lit_medgen.images.nifti import write_nifti

CLASSES = ("air", "head", "lesion")
SIZE, SPACING_MM = 8, 10.0
BESIDE = ("label_map", "flair", "t2")


@dataclass(frozen=True)
class Marked(Preprocessing):
    """Keeps the middle of the lesion too, around which images can be cropped."""

    def write(self, scan: Scan, path: Path, stacked: int) -> dict[str, Any]:
        """The files of a scan; see `Recipe`."""
        facts = super().write(scan, path, stacked)
        classes = np.moveaxis(np.load(array_path(path, "label_map")), 0, stacked)
        return facts | {"facts": {"lesion": np.argwhere(classes == CLASSES.index("lesion")).mean(0).tolist()}}


class Heads(MedicalDataModule):
    """<root>/<person>/{image,label_map,flair,t2}.nii.gz and facts.json.

    Args:
        root: folder of the people.
        preprocessing: grid, intensities, and what is kept beside the images.
        known: attributes that are read.
    """

    def __init__(
        self, root: str, preprocessing: Marked, known: tuple[str, ...] = ("age_years", "sex"), **common: Any
    ) -> None:
        super().__init__(root, preprocessing, **common)
        self.known = known

    def listing(self) -> dict[str, Any]:
        """What is read of each person."""
        return {"known": self.known}

    def scans(self) -> tuple[list[Scan], list[Rejected]]:
        """A scan for each folder."""
        folders = [image.parent for image in self.tree().matching("*/image.nii.gz")]
        return [
            Scan(
                folder / "image.nii.gz",
                folder.name,
                attributes={name: facts[name] for name in self.known},
                beside={name: folder / f"{name}.nii.gz" for name in BESIDE},
            )
            for folder in folders
            for facts in [json.loads((folder / "facts.json").read_text())]
        ], []


def affine(spacing_mm: float, corner_mm: float) -> np.ndarray:
    """Voxel to world of a grid whose outer corner lies there."""
    return np.array([[*row, corner_mm + spacing_mm / 2] for row in np.eye(3) * spacing_mm] + [[0, 0, 0, 1]])


def write_heads(root: Path, num: int, seed: int = 0) -> None:
    """Raw data of so many people."""
    random = np.random.default_rng(seed)
    for person in range(num):
        folder, corner_mm = root / f"person_{person}", -40.0 - person
        folder.mkdir(parents=True)
        classes = np.zeros((SIZE,) * 3, dtype=np.float32)
        classes[1:-1, 1:-1, 1:-1] = 1
        x, y, z = random.integers(1, SIZE - 2, 3)
        classes[x : x + 2, y : y + 2, z : z + 2] = 2
        facts = {"age_years": 40.0 + 5 * person, "sex": float(person % 2)}
        image = np.array([0, 30 + 20 * facts["sex"], 90])[classes.astype(int)] + random.uniform(0, 10, classes.shape)
        coarse = image.reshape(SIZE // 2, 2, SIZE // 2, 2, SIZE // 2, 2).mean((1, 3, 5))
        grid, coarse_grid = affine(SPACING_MM, corner_mm), affine(2 * SPACING_MM, corner_mm)
        write_nifti(folder / "image.nii.gz", image.astype(np.float32), grid)
        write_nifti(folder / "label_map.nii.gz", classes, grid)
        write_nifti(folder / "t2.nii.gz", coarse.astype(np.float32), coarse_grid)
        write_nifti(folder / "flair.nii.gz", (100 - coarse).astype(np.float32), coarse_grid)
        (folder / "facts.json").write_text(json.dumps(facts))
