"""A folder with masks, a category, several labels a cell and a column of parts, from raw files to a sample."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import yaml

from lit_medgen.__main__ import main
from lit_medgen.images.nifti import write_nifti

SHAPE = (20, 24, 18)
ROWS = [
    ("s0", "Philips", "mass|nodule", "train"),
    ("s1", "GE", "none", "train"),
    ("s2", "Siemens", "nodule", "val"),
    ("s3", "GE", "mass", "test"),
    ("s4", "Philips", "mass", "test"),
]


def write_folder(root: Path) -> None:
    """An ellipsoid of noise a person, with a mask of values 0 and 7, and the table."""
    distance = (((np.indices(SHAPE).T - np.array(SHAPE) / 2) / (np.array(SHAPE) * 0.4)) ** 2).sum(-1).T
    for seed, (name, *_) in enumerate(ROWS):
        head = np.random.default_rng(seed).integers(50, 200, SHAPE) * (distance < 1)
        for kind, voxels in (("T1w", head.astype(np.float32)), ("seg", 7 * (distance < 0.3).astype(np.uint8))):
            write_nifti(root / f"{name}_{kind}.nii.gz", voxels, np.diag([8.0, 8.0, 8.0, 1.0]))
    with (root / "people.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "scanner", "findings", "part"), *ROWS])


def test_masks_categories_and_labels_from_files_to_a_sample(tmp_path: Path) -> None:
    (root := tmp_path / "raw").mkdir()
    write_folder(root)
    data = {
        "class_path": "data_modules.FolderDataModule",
        "init_args": {
            "root": str(root),
            "table": "people.csv",
            "key": "id",
            "categories": ["scanner"],
            "labels": {"findings": "|"},
            "split_column": "part",
            "beside": {"label_map": "{folder}/{prefix}_seg.nii.gz"},
            "classes": {"background": 0, "lesion": 7},
            "augmentation": [{"class_path": "data_modules.Flip"}, {"class_path": "data_modules.Gamma"}],
            "store_dir": str(tmp_path / "store"),
        },
    }
    covariates = {"categories": {"scanner": 3}, "labels": {"findings": ["mass", "nodule"]}}
    model = {"init_args": {"concatenate": True, "network": {"init_args": {"in_channels": 3, "covariates": covariates}}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"data": data, "model": model}))
    files = ["configs/ddpm.yaml", *(f"tests/tiny/{name}.yaml" for name in ("any", "volumes", "ddpm"))]
    words = [word for name in [*files, str(tmp_path / "mine.yaml")] for word in ("--config", name)]
    assert main(["fit", *words, f"--trainer.default_root_dir={tmp_path}"]) == 0
    last, out = next(tmp_path.glob("*/checkpoints/last.ckpt")), tmp_path / "samples"
    line = ["sample", f"--ckpt_path={last}", "--like=test", "--num=2", f"--out={out}", "--trainer.accelerator=cpu"]
    assert main(line) == 0
    spec = json.loads((out / "spec.json").read_text())
    assert spec["category_names"] == {"scanner": ["GE", "Philips", "Siemens"]}
    assert spec["classes"] == ["background", "lesion"]
    rows = list(csv.DictReader((out / "manifest.csv").read_text().splitlines()))
    assert [json.loads(row["condition"])["mass"] for row in rows] == [1, 1]
