"""Masks, categories, sets of labels and a column of splits from a folder and its table."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_modules.folder import FolderDataModule
from data_modules.recipes.volumes import Preprocessing
from data_modules.records import person_hash
from data_modules.sources import LABEL_MAP
from data_modules.splits import SPLITS
from lit_medgen.batch import DataSpec
from lit_medgen.errors import InputError
from lit_medgen.images.nifti import read_nifti, write_nifti

WriteHead = Callable[[Path, int], Path]
CLASSES = {"background": 0, "lesion": 3}
ROWS = [
    ("s0", "Philips", "mass|nodule", "train"),
    ("s1", "GE", "No Finding", "Training"),
    ("s2", "Siemens Prisma", "", ""),
    ("s3", "GE", "nodule", "VALID"),
    ("s4", "n/a", "none", "test"),
    ("s5", "Philips", "Pleural Thickening | mass", "test"),
]


def write_table(root: Path, rows: list[tuple[str, ...]]) -> None:
    lines = [",".join(f'"{cell}"' for cell in row) for row in [("id", "scanner", "findings", "part"), *rows]]
    (root / "t.csv").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, write_head: WriteHead) -> Path:
    """Six people, five with a mask of values 0 and 3 beside the image; read only."""
    root = tmp_path_factory.mktemp("masked")
    for number, (name, *_) in enumerate(ROWS):
        head, affine = read_nifti(write_head(root / "images" / f"{name}_T1w.nii.gz", number))
        if number:
            write_nifti(root / "images" / f"{name}_seg.nii.gz", (head > 120).astype(np.uint8) * 3, affine)
    write_table(root, ROWS)
    return root


def folder(root: Path, store: Path, small: Preprocessing, **options: Any) -> FolderDataModule:
    table: dict[str, Any] = {"table": "t.csv", "key": "id", "categories": ["scanner"], "labels": {"findings": "|"}}
    masks: dict[str, Any] = {"beside": {LABEL_MAP: "{folder}/{prefix}_seg.nii.gz"}, "classes": CLASSES}
    return FolderDataModule(
        str(root), preprocessing=small, store_dir=str(store), num_jobs=1, **{**table, **masks, **options}
    )


def test_masks_categories_labels_and_splits_of_a_table(root: Path, tmp_path: Path, small: Preprocessing) -> None:
    data = folder(root, tmp_path, small, split_column="part", fractions=(1, 0, 0))
    accepted, rejected = data.prepare()
    data.setup("predict")
    assert (len(accepted), rejected) == (6, [])
    sides = {split: set(data.people(split).values()) for split in SPLITS}
    named = {"train": ("s0", "s1"), "val": ("s3",), "test": ("s4", "s5")}
    assert sides == {split: set(map(person_hash, those)) for split, those in named.items()}
    spec = data.spec
    assert spec.category_names == {"scanner": ("GE", "Philips", "Siemens Prisma")}
    assert spec.attributes == {"scanner": (0.0, 2.0)} | dict.fromkeys(
        ("no_finding", "pleural_thickening", "mass", "nodule"), (0.0, 1.0)
    )
    assert set(spec.codes) == spec.attributes.keys() - {"scanner"}
    assert DataSpec.from_plain(spec.plain()) == spec
    of = {record.person: record for record in data.store.records}
    first = of[person_hash("s0")].attributes
    assert (first["scanner"], first["mass"], first["nodule"], first["no_finding"]) == (1, 1, 1, 0)
    assert math.isnan(of[person_hash("s4")].attributes["scanner"])
    assert [of[person_hash(name)].attributes["mass"] for name in ("s1", "s4", "s5")] == [0, 0, 1]
    assert math.isnan(of[person_hash("s2")].attributes["mass"])
    assert spec.classes == ("background", "lesion")
    assert [LABEL_MAP in of[person_hash(name)].beside for name in ("s0", "s1")] == [False, True]
    labels, image = (data.store.read(of[person_hash("s1")], name=name) for name in (LABEL_MAP, "image"))
    assert set(np.unique(labels)) == {0, 1}  # numbers of classes, not the values of the files
    assert image[labels == 1].mean() > image[labels == 0].mean()
    assert "1 of 6 images have no label_map" in data.taken(accepted, rejected, owner=False)


def test_unknown_values_of_a_mask_are_counted(root: Path, tmp_path: Path, small: Preprocessing) -> None:
    data = folder(root, tmp_path, small, classes={"background": 0, "lesion": 1})
    accepted, rejected = data.prepare()
    assert len(accepted) == 1
    assert len(rejected) == 5
    assert all(f"values that are no class: 3 ({n} voxels)" in row.reason for row in rejected for n in [count_of(row)])


def count_of(row: Any) -> int:
    """Voxels of the mask beside a rejected image."""
    voxels, _ = read_nifti(Path(row.source.replace("T1w", "seg")))
    return int((voxels == 3).sum())


def test_a_column_names_the_masks(root: Path, tmp_path: Path, small: Preprocessing) -> None:
    (tmp_path / "maps.csv").write_text("id,map\ns0,\ns1,images/s1_seg.nii.gz\ns2,images/s2_seg.nii.gz\n")
    options: dict[str, Any] = {"table": str(tmp_path / "maps.csv"), "beside": None, "label_map_column": "map"}
    scans, _ = folder(root, tmp_path, small, **options, categories=None, labels=None).scans()
    assert {scan.path.name: [path.name for path in scan.files[1:]] for scan in scans} == {
        "s0_T1w.nii.gz": [],
        "s1_T1w.nii.gz": ["s1_seg.nii.gz"],
        "s2_T1w.nii.gz": ["s2_seg.nii.gz"],
    }


def test_without_a_table_masks_are_no_images(root: Path, tmp_path: Path, small: Preprocessing) -> None:
    for how in ("{folder}/{prefix}_seg.nii.gz", ("_T1w", "_seg")):
        options: dict[str, Any] = {"beside": {LABEL_MAP: how}, "table": None, "categories": None, "labels": None}
        scans, rejected = folder(root, tmp_path, small, **options).scans()
        assert (len(scans), rejected) == (6, [])
        assert sum(LABEL_MAP in scan.beside for scan in scans) == 5


def test_values_keep_the_order_that_is_given(root: Path, tmp_path: Path, small: Preprocessing) -> None:
    order = ["Siemens Prisma", "Philips", "GE", "Canon"]
    scans, _ = folder(root, tmp_path, small, categories={"scanner": order}).scans()
    assert [scan.attributes["scanner"] for scan in scans[:4]] == [1, 2, 0, 2]


def test_codes_do_not_depend_on_the_order_of_rows(root: Path, tmp_path: Path, small: Preprocessing) -> None:
    (tmp_path / "t.csv").write_text("\n".join([(root / "t.csv").read_text().splitlines()[0], *reversed_rows(root)]))
    options = {"table": str(tmp_path / "t.csv")}
    one, other = (
        {scan.person: scan.attributes for scan in folder(root, tmp_path, small, **each).scans()[0]}
        for each in ({}, options)
    )
    np.testing.assert_equal(one, other)


def reversed_rows(root: Path) -> list[str]:
    return (root / "t.csv").read_text().splitlines()[:0:-1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"categories": {"scanner": ["GE", "Philips"]}},
            r"none of data.init_args.categories.scanner: 'Siemens Prisma' \(1",
        ),
        ({"categories": ["brand"]}, "no column 'brand'"),
        ({"attributes": ["scanner"]}, "two attributes are called 'scanner'"),
        ({"classes": None}, "classes: label maps need the names and values"),
        ({"label_map_column": "map"}, "label_map and label_map_column exclude each other"),
        ({"beside": {LABEL_MAP: "{person}/seg"}}, r"beside: '\{person\}/seg'; give a path below the root with"),
        ({"classes": {"background": 0, "lesion": 0}}, r"class_values is \[0, 0\]; give a value of its own"),
        ({"split_column": "scanner"}, r"split_column 'scanner' of .*: 5 rows \(lines 2, 3, 4, 5, 7\) name no part"),
        ({"split_column": "part", "fold": "0 of 2"}, "split_column and fold exclude each other"),
        ({"split_column": "part", "split_files": {"test": "x"}}, "split_column and split_files exclude each other"),
        ({"table": None}, r"data\.init_args\.(labels|categories): a column of no table"),
    ],
)
def test_what_cannot_be_is_one_line(
    options: dict[str, Any], words: str, root: Path, tmp_path: Path, small: Preprocessing
) -> None:
    with pytest.raises(InputError, match=words):
        folder(root, tmp_path, small, **options).prepare()


def test_values_that_differ_in_case_alone_are_refused(root: Path, tmp_path: Path, small: Preprocessing) -> None:
    (tmp_path / "t.csv").write_text("id,scanner\ns0,GE\ns1,ge\n")
    with pytest.raises(InputError, match="column 'scanner' has 'GE' and 'ge'; write them alike"):
        folder(root, tmp_path, small, table=str(tmp_path / "t.csv"), labels=None).scans()


def test_a_column_of_ids_is_no_category(root: Path, tmp_path: Path, small: Preprocessing) -> None:
    """Its values would stand in every checkpoint."""
    (tmp_path / "t.csv").write_text("id,scanner\n" + "\n".join(f"s{k},patient {k}" for k in range(60)))
    with pytest.raises(InputError, match="column 'scanner' has 60 categories; give one with 1 to 50") as refusal:
        folder(root, tmp_path, small, table=str(tmp_path / "t.csv"), labels=None).scans()
    assert "patient" not in str(refusal.value)
