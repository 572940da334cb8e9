"""`FolderDataModule`: which image belongs to whom, and batches from NIfTI, PNG and DICOM folders."""

from __future__ import annotations

import csv
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from data_modules.folder import FolderDataModule
from data_modules.recipes.volumes import Preprocessing
from data_modules.slice_sets import FDMDraw, UniformDraw
from data_modules.sources import Scan
from data_modules.splits import SPLITS
from data_modules.store import Store
from lit_medgen.batch import PADDING, Batch
from lit_medgen.errors import InputError, MissingDataError
from lit_medgen.images import read_image
from lit_medgen.images.png import write_png

WriteHead = Callable[[Path, int], Path]
Opened = Callable[..., FolderDataModule]


@pytest.fixture
def opened(tmp_path: Path, small: Preprocessing) -> Opened:
    """Prepares a folder and sets it up; its store lies in a temporary folder."""

    def open_(root: Path, **options: Any) -> FolderDataModule:
        defaults: dict[str, Any] = {"preprocessing": small, "fractions": (0.5, 0.25, 0.25), "num_jobs": 1}
        module = FolderDataModule(str(root), store_dir=str(tmp_path / "prepared"), **{**defaults, **options})
        module.prepare_data()
        module.setup("fit")
        return module

    return open_


@pytest.fixture
def heads(opened: Opened, cohort: Path) -> FolderDataModule:
    """The cohort with its table."""
    return opened(cohort, table="participants.tsv", attributes=["age", "sex"], view=UniformDraw(6), batch_size=2)


def touch(root: Path, table: str, *files: str) -> FolderDataModule:
    """Empty files and a table; enough to list scans."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "t.csv").write_text(table)
    return FolderDataModule(str(root), table="t.csv", key="id", attributes=["age"])


def ages(scans: list[Scan]) -> dict[str, float]:
    return {scan.path.name: scan.attributes["age"] for scan in scans}


def test_a_row_belongs_to_the_files_that_begin_with_its_key(tmp_path: Path) -> None:
    scans, rejected = touch(tmp_path, "id,age\ns1,30\ns2,40\n", "s1_a.nii.gz", "deep/s1_b.nii.gz", "s2.nii.gz").scans()
    assert ages(scans) == {"s1_a.nii.gz": 30, "s1_b.nii.gz": 30, "s2.nii.gz": 40}
    assert rejected == []
    assert [scan.person for scan in scans if scan.path.name.startswith("s1")] == ["s1", "s1"]


def test_the_longest_key_wins(tmp_path: Path) -> None:
    scans, _ = touch(tmp_path, "id,age\ns1_v2,31\ns1,30\n", "s1_v1.nii.gz", "s1_v2.nii.gz").scans()
    assert ages(scans) == {"s1_v1.nii.gz": 30, "s1_v2.nii.gz": 31}


def test_a_key_may_be_a_path_below_the_root(tmp_path: Path) -> None:
    scans, rejected = touch(tmp_path, "id,age\na/t1.nii.gz,30\nb/t1.nii.gz,40\n", "a/t1.nii.gz", "b/t1.nii.gz").scans()
    assert {scan.path.parent.name: scan.attributes["age"] for scan in scans} == {"a": 30, "b": 40}
    assert rejected == []


@pytest.mark.parametrize("key", ["s1", ""])
def test_a_key_does_not_claim_the_files_of_others(key: str, tmp_path: Path) -> None:
    """s1 is not s12, and a row without a key is nobody."""
    scans, rejected = touch(tmp_path, f"id,age\n{key},30\n", "s12.nii.gz").scans()
    assert scans == []
    assert any(row.source.endswith("s12.nii.gz") for row in rejected)


def test_two_rows_for_one_key_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 rows repeat a id, first line 3"):  # the line, not the person
        touch(tmp_path, "id,age\ns1,30\ns1,99\n", "s1.nii.gz").scans()


def test_images_without_row_and_rows_without_image_are_listed(tmp_path: Path) -> None:
    scans, rejected = touch(tmp_path, "id,age\ns1,30\ns7,70\n", "s1.nii.gz", "other.nii.gz").scans()
    assert len(scans) == 1
    assert [(Path(row.source).name, row.reason) for row in rejected] == [
        ("other.nii.gz", "no row of t.csv has a id that names this file"),
        ("t.csv: s7", "a row without an image"),
    ]


@pytest.mark.parametrize("options", [{"key": "subject"}, {"person": "subject"}, {"attributes": ["age", "subject"]}])
def test_a_missing_column_is_named(options: dict[str, Any], cohort: Path) -> None:
    module = FolderDataModule(str(cohort), table="participants.tsv", **options)
    with pytest.raises(
        InputError, match=r"participants\.tsv: no column 'subject'; it has 'participant_id', 'age', 'sex'"
    ):
        module.scans()


@pytest.mark.parametrize("content", ["", "a,b\n1,2,3,4\n1,2\n", "\x00\xff"])
def test_what_is_no_table_is_an_input_error(content: str, tmp_path: Path) -> None:
    module = touch(tmp_path, "", "s1.nii.gz")
    (tmp_path / "t.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"t\.csv"):
        module.scans()


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"nowhere\.csv: no such table"):
        FolderDataModule(str(tmp_path), table="nowhere.csv").scans()


@pytest.mark.parametrize(
    ("text", "value"), [("71.5", 71.5), (" 71 ", 71.0), ("", math.nan), ("n/a", math.nan), ("F", math.nan)]
)
def test_cells_become_numbers_or_unknown(text: str, value: float, tmp_path: Path) -> None:
    scans, _ = touch(tmp_path, f"id,age\ns1,{text}\n", "s1.nii.gz").scans()
    np.testing.assert_equal(scans[0].attributes["age"], value)


def test_text_columns_have_codes(cohort: Path) -> None:
    module = FolderDataModule(str(cohort), table="participants.tsv", attributes=["sex"])
    assert [scan.attributes["sex"] for scan in module.scans()[0]] == [0, 0, 1, 1] * 6
    other = FolderDataModule(str(cohort), table="participants.tsv", attributes=["sex"], codes={"sex": {"F": 5, "M": 6}})
    assert [scan.attributes["sex"] for scan in other.scans()[0]] == [5, 5, 6, 6] * 6


def test_without_a_table_the_folder_or_the_file_name_is_the_person(cohort: Path) -> None:
    scans, rejected = FolderDataModule(str(cohort)).scans()
    assert rejected == []
    assert {scan.person for scan in scans} == {f"sub-{person:02d}" for person in range(12)}
    flat, _ = FolderDataModule(str(cohort / "sub-00")).scans()
    assert {scan.person for scan in flat} == {"sub-00_ses-1_T1w", "sub-00_ses-2_T1w"}


def test_a_missing_root_says_what_to_do(tmp_path: Path) -> None:
    module = FolderDataModule(str(tmp_path / "nowhere"), store_dir=str(tmp_path))
    with pytest.raises(MissingDataError, match=r"data\.init_args\.root: no folder .*nowhere.* Give the folder"):
        module.prepare_data()


def test_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(MissingDataError, match=r"no images under .* `pattern`"):
        FolderDataModule(str(tmp_path), store_dir=str(tmp_path / "prepared")).prepare_data()


def test_a_folder_of_bad_files_names_the_first(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"no image")
    with pytest.raises(
        InputError, match=r"all 1 images were rejected; the first: .*a\.nii\.gz: .*cut off or damaged.*rejected\.csv"
    ):
        FolderDataModule(str(tmp_path), store_dir=str(tmp_path / "prepared"), num_jobs=1).prepare_data()


def test_two_roots_with_one_recipe_keep_their_own_people(opened: Opened, tmp_path: Path, write_head: WriteHead) -> None:
    """Whoever prepares another cohort beside ours changes nothing that our jobs read."""
    for root, seeds in (("ours", range(4)), ("theirs", range(2, 8))):
        for seed in seeds:
            write_head(tmp_path / root / f"s{seed}.nii.gz", seed)
    ours = opened(tmp_path / "ours", fractions=(1.0, 0.0, 0.0))
    listed, digest = ours.store.records, ours.store.digest
    theirs = opened(tmp_path / "theirs", fractions=(1.0, 0.0, 0.0))
    ours.setup("fit")
    assert [record.key for record in ours.store.records] == [record.key for record in listed]
    assert ours.store.digest == digest != theirs.store.digest
    assert len(theirs.store.records) == 6


@pytest.mark.parametrize("options", [{"pattern": "sub-0[0-3]/*.nii.gz"}, {"attributes": ["sex"]}, {"person": "sex"}])
def test_what_decides_the_list_decides_the_store(options: dict[str, Any], opened: Opened, cohort: Path) -> None:
    one = opened(cohort, table="participants.tsv")
    before = [(record.person, str(record.attributes)) for record in one.store.records]
    opened(cohort, table="participants.tsv", **options)
    assert [(record.person, str(record.attributes)) for record in Store(one.address).records] == before


def test_a_root_that_has_moved_is_not_prepared_anew(
    opened: Opened, tmp_path: Path, write_head: WriteHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_head(tmp_path / "before" / "s1.nii.gz", 0)
    digest = opened(tmp_path / "before", fractions=(1.0, 0.0, 0.0)).store.digest
    (tmp_path / "before").rename(tmp_path / "after")
    monkeypatch.setattr(Preprocessing, "write", lambda *_: pytest.fail("an image was prepared again"))
    assert opened(tmp_path / "after", fractions=(1.0, 0.0, 0.0)).store.digest == digest


def test_people_stay_together_and_unnamed(heads: FolderDataModule) -> None:
    owners = [{record.person for record in heads.records[split]} for split in SPLITS]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 12
    assert sum(len(heads.records[split]) for split in SPLITS) == 24
    assert all(owners)
    manifest = (heads.address.folder / "manifest.csv").read_text()
    assert not re.search(r"sub-\d\d", manifest)


def test_attributes_come_from_the_table(heads: FolderDataModule) -> None:
    found = [record.attributes for split in SPLITS for record in heads.records[split]]
    expected = [(math.nan if person == 3 else 50.0 + person, float(person % 2)) for person in range(12) for _ in (1, 2)]
    assert sorted(map(str, ((a["age"], a["sex"]) for a in found))) == sorted(map(str, expected))
    train = [r.attributes["age"] for r in heads.records["train"]]
    assert heads.spec.attributes == {"age": (np.nanmin(train), np.nanmax(train)), "sex": (0, 1)}


def test_whole_volumes(opened: Opened, cohort: Path) -> None:
    module = opened(cohort, table="participants.tsv", attributes=["age"], batch_size=3)
    batch = next(iter(module.train_dataloader()))
    assert isinstance(batch, Batch)
    assert batch.image.shape == (3, 1, *module.spec.size) == (3, 1, 10, 12, 9)
    assert batch.image.dtype == torch.float32
    assert batch.affine.shape == (3, 4, 4)
    assert batch.condition.attributes["age"].shape == (3,)
    assert batch.condition.slice_index is batch.condition.observed is None
    images = module.images("train").all()
    assert images.min() == -1
    assert 0.5 < images.max() <= 1
    assert len(set(batch.key)) == 3
    assert module.spec.slice_axis == ""
    assert module.spec.spacing_mm == (4, 4, 4)


@pytest.mark.parametrize(("axis", "shape"), [("sagittal", (12, 9)), ("coronal", (10, 9)), ("axial", (10, 12))])
@pytest.mark.parametrize("draw", [UniformDraw(6), FDMDraw(6)])
def test_slice_sets(
    axis: str, shape: tuple[int, int], draw: UniformDraw | FDMDraw, opened: Opened, cohort: Path
) -> None:
    module = opened(cohort, table="participants.tsv", axis=axis, view=draw, batch_size=4, pattern="sub-0[0-5]/*.nii.gz")
    batch = next(iter(module.train_dataloader()))
    assert batch.condition.slice_index is not None
    assert batch.condition.observed is not None
    assert batch.image.shape == (4, 1, 6, *shape)
    assert batch.condition.slice_index.shape == batch.condition.observed.shape == (4, 6)
    assert batch.image.min() >= -1
    assert batch.image.max() <= 1
    assert (batch.image[:, 0][batch.condition.slice_index == PADDING] == -1).all()
    assert module.spec.slice_axis == axis
    for row, key in enumerate(batch.key):
        record = next(r for r in module.records["train"] if r.key == key)
        whole = np.moveaxis(module.store.read(record), {"sagittal": 0, "coronal": 1, "axial": 2}[axis], 0)
        real = batch.condition.slice_index[row] != PADDING
        np.testing.assert_array_equal(batch.image[row, 0, real], whole[batch.condition.slice_index[row, real]])


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_loaders_give_every_image_once(split: str, heads: FolderDataModule) -> None:
    loader = heads.val_dataloader() if split == "val" else heads.test_dataloader()
    first, second = list(loader), list(loader)
    assert [key for batch in first for key in batch.key] == [record.key for record in heads.records[split]]
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a.image, b.image, rtol=0, atol=0)  # the same slices every time


def test_volumes_of_a_split(heads: FolderDataModule) -> None:
    assert heads.images("test").all().shape == (len(heads.records["test"]), 1, 10, 12, 9)


def png_folder(root: Path, num: int = 8) -> Path:
    for i in range(num):
        write_png(root / f"{i}.png", np.random.default_rng(i).uniform(size=(16, 12)))
    return root


def test_a_folder_of_pngs_is_two_dimensional(opened: Opened, tmp_path: Path) -> None:
    grid = Preprocessing((8, 6), (16.0, 12.0), centre="grid", intensity="window", window=(0.0, 255.0))
    (tmp_path / "png").mkdir()
    module = opened(png_folder(tmp_path / "png"), pattern="*.png", preprocessing=grid, batch_size=2)
    batch = next(iter(module.train_dataloader()))
    assert batch.image.shape == (2, 1, 8, 6)
    assert -1 <= batch.image.min() < batch.image.max() <= 1
    assert batch.affine.shape == (2, 4, 4)
    assert module.spec.orientation == ""
    assert module.spec.intensity_window == (0, 255)


def dicom_series(folder: Path, seed: int, num: int = 4) -> None:
    folder.mkdir(parents=True)
    voxels = np.random.default_rng(seed).integers(0, 1000, (num, 8, 8)).astype("<i2")
    series = pydicom.uid.generate_uid()
    for k in range(num):
        data = pydicom.Dataset()
        data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = (
            CTImageStorage,
            pydicom.uid.generate_uid(),
            series,
        )
        data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2 * k]
        data.PixelSpacing, data.Rows, data.Columns, data.SamplesPerPixel = [1, 1], 8, 8, 1
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.PhotometricInterpretation, data.PixelData = "MONOCHROME2", voxels[k].tobytes()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.save_as(folder / f"{num - k}.dcm", enforce_file_format=True)


def test_a_folder_of_dicom_series(opened: Opened, tmp_path: Path) -> None:
    root = tmp_path / "dicom"
    for person in range(4):
        dicom_series(root / f"p{person}" / "ct", seed=person)
    (root / "t.csv").write_text("id,person\n" + "".join(f"p{person}/ct,p{person}\n" for person in range(4)))
    grid = Preprocessing((8, 8, 4), (8.0, 8.0, 8.0), centre="grid", intensity="window", window=(0.0, 1000.0))
    module = opened(root, pattern="**/*.dcm", table="t.csv", key="id", person="person", preprocessing=grid)
    assert len(module.store.records) == 4
    assert next(iter(module.train_dataloader())).image.shape == (1, 1, 8, 8, 4)


def test_a_bad_series_is_listed_by_its_folder(opened: Opened, tmp_path: Path) -> None:
    root = tmp_path / "dicom"
    for person in range(4):
        dicom_series(root / f"p{person}", seed=person)
    (root / "p3" / "1.dcm").write_bytes(b"no image")
    module = opened(
        root, pattern="**/*.dcm", preprocessing=Preprocessing((8, 8, 4), (8.0,) * 3), fractions=(1.0, 0.0, 0.0)
    )
    assert len(module.records["train"]) == 3
    rejected = (module.address.folder / "rejected.csv").read_text()
    assert str(root / "p3") in rejected
    assert "1.dcm" in rejected


def together(
    root: Path, *series: Path, change: Callable[[pydicom.Dataset, int], None] = lambda data, number: None
) -> Path:
    """All files of some series in one folder, under names that alternate between the series and have no suffix."""
    root.mkdir(parents=True, exist_ok=True)
    for number, folder in enumerate(series):
        for k, path in enumerate(sorted(folder.glob("*.dcm"))):
            data = pydicom.dcmread(path)
            change(data, number)
            data.save_as(root / f"IM{k}{number}")
        shutil.rmtree(folder)
    return root


def test_several_series_of_a_folder_are_images_of_their_own(opened: Opened, tmp_path: Path) -> None:
    """The person is the folder's, or, where all lies in the root, the patient that the header names."""
    for name in "abcd":
        dicom_series(tmp_path / name, seed=ord(name))
    grid = Preprocessing((8, 8, 4), (8.0,) * 3, centre="grid", intensity="window", window=(0.0, 1000.0))
    root = together(tmp_path / "root" / "p0", tmp_path / "a", tmp_path / "b").parent
    module = opened(root, pattern="**/*", preprocessing=grid, fractions=(1.0, 0.0, 0.0))
    assert len(module.store.records) == 2
    assert [(len(scan.files), scan.person) for scan in module.scans()[0]] == [(4, "p0")] * 2

    flat = together(
        tmp_path / "flat",
        tmp_path / "c",
        tmp_path / "d",
        change=lambda data, number: setattr(data, "PatientID", "xy"[number]),
    )
    scans, _ = FolderDataModule(str(flat), pattern="*").scans()
    assert [(len(scan.files), scan.person) for scan in scans] == [(4, "x"), (4, "y")]


def test_radiographs_of_a_folder_are_2d_images_that_a_table_names(opened: Opened, tmp_path: Path) -> None:
    """Of several sizes and without a pixel spacing: all of each is there."""
    dicom_series(tmp_path / "a", seed=0, num=3)
    for number, path in enumerate(sorted((tmp_path / "a").glob("*.dcm"))):
        data = pydicom.dcmread(path)
        del data.ImageOrientationPatient, data.ImagePositionPatient, data.PixelSpacing
        data.Modality, data.Rows, data.Columns = "DX", 8 * (1 + number), 8 * (3 - number)
        data.PixelData = (
            np.random.default_rng(number).integers(100, 1000, (data.Rows, data.Columns)).astype("<i2").tobytes()
        )
        data.save_as(path)
    (tmp_path / "a" / "t.csv").write_text("id,age\n" + "".join(f"{k},{50 + k}\n" for k in (1, 2, 3)))
    grid = Preprocessing((8, 8), (100.0, 100.0), intensity="window", window=(0.0, 1000.0))
    module = opened(
        tmp_path / "a",
        pattern="*.dcm",
        table="t.csv",
        key="id",
        attributes=["age"],
        preprocessing=grid,
        fractions=(1.0, 0.0, 0.0),
    )
    assert sorted(record.attributes["age"] for record in module.store.records) == [51, 52, 53]
    assert [record.cut for record in module.store.records] == [0, 0, 0]
    assert next(iter(module.train_dataloader())).image.shape == (1, 1, 8, 8)


@pytest.mark.data
def test_real_brains_are_all_listed_with_attributes(shared_data: Path) -> None:
    module = FolderDataModule(
        str(shared_data / "brain" / "ixi"),
        "brain/*.nii.gz",
        table="participants.tsv",
        attributes=["age", "sex", "brain_ml"],
    )
    scans, rejected = module.scans()
    assert (len(scans), rejected) == (138, [])
    assert len({scan.person for scan in scans}) == 138
    found = {name: np.array([scan.attributes[name] for scan in scans]) for name in module.attributes}
    assert [int((found["sex"] == code).sum()) for code in (0, 1)] == [70, 64]
    assert np.isnan(found["sex"]).sum() == 4
    assert 20 <= np.nanmin(found["age"]) < np.nanmax(found["age"]) < 83
    assert 800 < np.nanmin(found["brain_ml"]) < np.nanmax(found["brain_ml"]) < 2000


@pytest.mark.data
def test_real_brains_are_prepared(opened: Opened, shared_data: Path) -> None:
    module = opened(
        shared_data / "brain" / "ixi",
        pattern="brain/IXI0*.nii.gz",
        table="participants.tsv",
        attributes=["age", "sex"],
        preprocessing=Preprocessing((40, 48, 40), (160.0, 192.0, 160.0)),
        view=FDMDraw(8),
        batch_size=2,
    )
    files = len(list((shared_data / "brain" / "ixi" / "brain").glob("IXI0*.nii.gz")))
    assert sum(len(module.records[split]) for split in SPLITS) == files > 5
    assert max(record.cut for record in module.store.records) == 0
    for batch in islice(module.train_dataloader(), 3):
        assert batch.image.shape == (2, 1, 8, 40, 48)
        assert batch.image.min() == -1
        assert 0.5 < batch.image.max() <= 1


@pytest.mark.data
def test_real_ct_slices_of_several_series_in_a_folder_are_2d_images(opened: Opened, shared_data: Path) -> None:
    grid = Preprocessing((64, 64), (500.0, 500.0), "grid", intensity="window", window=(-1000.0, 400.0))
    root = shared_data / "lungct" / "dicom_single_slices" / "COVID-19-NY-SBU"
    module = opened(root, pattern="**/*", preprocessing=grid, fractions=(1.0, 0.0, 0.0))
    assert len(module.store.records) == 10
    assert len({record.person for record in module.store.records}) == 5
    assert max(record.cut for record in module.store.records) == 0


@pytest.mark.data
def test_real_chest_radiographs_are_split_by_patient(opened: Opened, shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "cxr").mkdir()
    shutil.copy(shared_data / "cxr" / "Data_Entry_subset.csv", tmp_path / "cxr")
    for path in sorted((shared_data / "cxr" / "images_256").glob("*.png"))[:30]:
        (tmp_path / "cxr" / path.name).symlink_to(path)
    module = opened(
        tmp_path / "cxr",
        pattern="*.png",
        table="Data_Entry_subset.csv",
        key="Image Index",
        person="Patient ID",
        attributes=["Patient Age"],
        preprocessing=Preprocessing((32, 32), (256.0, 256.0), centre="grid", intensity="window"),
    )
    owners = [{record.person for record in module.records[split]} for split in SPLITS]
    assert (
        sum(map(len, owners)) == len(set().union(*owners)) < sum(len(module.records[split]) for split in SPLITS) == 30
    )


@pytest.mark.data
def test_real_lidc_nodules_and_their_table(shared_data: Path, opened: Opened) -> None:
    """178 boxes in HU: with a grid of the box's own voxels, the values are those of the file."""
    root = shared_data / "lungct" / "lidc_nodules"
    options: dict[str, Any] = {
        "pattern": "image/*.nii.gz",
        "table": "nodules.csv",
        "key": "file",
        "person": "patient_id",
        "attributes": ["Malignancy_value", "Spiculation_value", "diameter_mm"],
    }
    source = nib.load(root / "image" / "LIDC-IDRI-0007_R_1.nii.gz")
    size = source.shape[:3]
    fov = tuple(float(n * mm) for n, mm in zip(size, source.header.get_zooms()[:3], strict=True))
    grid = Preprocessing(size, fov, centre="grid", intensity="window", window=(-1024, 800))
    data = opened(root, preprocessing=grid, fractions=(1.0, 0.0, 0.0), **options)
    records = data.records["train"]
    with (root / "nodules.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(records) == len(rows) == 178
    assert len({record.person for record in records}) == len({row["patient_id"] for row in rows}) == 144
    for name in options["attributes"]:
        values = sorted(record.attributes[name] for record in records)
        np.testing.assert_allclose(values, sorted(float(row[name]) for row in rows))
    expected = nib.as_closest_canonical(source).get_fdata().clip(-1024, 800)
    images = [data.spec.to_window(torch.from_numpy(data.store.read(record))).numpy() for record in records]
    assert min(np.abs(image - expected).max() for image in images) < 1.0  # float16 of the window


@pytest.mark.data
def test_real_lidc_slices_and_their_table(shared_data: Path, opened: Opened) -> None:
    root = shared_data / "lungct" / "lidc_slices"
    data = opened(
        root,
        pattern="image/*.png",
        table="slices.csv",
        key="file",
        person="patient_id",
        attributes=["malignancy", "is_cancer", "png_lo", "png_hi"],
        codes={"is_cancer": {"True": 1.0, "False": 0.0}},
        preprocessing=Preprocessing((512, 512), (512.0, 512.0), centre="grid", intensity="window", window=(0, 255)),
        fractions=(1.0, 0.0, 0.0),
    )
    records = data.records["train"]
    assert len(records) == 64
    assert len({record.person for record in records}) == 6
    with (root / "slices.csv").open(newline="") as file:
        said = Counter(row["is_cancer"] for row in csv.DictReader(file))
    counts = Counter(record.attributes["is_cancer"] for record in records)
    assert (counts[1.0], counts[0.0]) == (said["True"], said["False"])  # the rest is "Ambiguous": unknown
    shown = data.spec.to_window(torch.from_numpy(data.store.read(records[0]))).numpy()
    assert min(np.abs(read_image(path)[0] - shown).max() for path in sorted((root / "image").glob("*.png"))) < 0.5
