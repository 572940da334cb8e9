"""Phantom UK Biobank: the layout of the bulk zips, volumes that are true, and one head in T1 and FLAIR."""

from __future__ import annotations

import csv
import gzip
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_modules.phantoms import tissues
from data_modules.phantoms.ukbiobank import Participant, participants
from lit_medgen.__main__ import main

NUM, SEED = 6, 1
T1 = {"T1/T1.json", "T1/T1_brain_to_MNI.nii.gz", "T1/T1_unbiased_brain.nii.gz"}
UNUSABLE = {"T1/unusable/T1_orig_defaced.nii.gz"}
FLAIR = {
    *("T2_FLAIR/T2_FLAIR.json", "T2_FLAIR/T2_FLAIR_unbiased_brain.nii.gz"),
    "T2_FLAIR/T2_FLAIR_brain_to_MNI.nii.gz",
}
VOLUMES = ("25003", "25004", "25005", "25006", "25007", "25008", "25009", "25010")
"""Normalised and raw, of ventricles, grey matter, white matter, brain."""
SHARES: tuple[Callable[[tissues.Anatomy], np.ndarray], ...] = (
    lambda head: head.ventricles,
    lambda head: head.grey,
    lambda head: head.white,
    lambda head: np.clip((head.values - tissues.CSF) / (tissues.GREY - tissues.CSF), 0, 1),
)


@pytest.fixture(scope="module")
def people() -> list[Participant]:
    return participants(NUM + 1 + NUM // 8, SEED)[:NUM]


@pytest.fixture(scope="module")
def table(ukbiobank_phantoms: Path) -> dict[str, dict[str, str]]:
    """eid -> row."""
    with (ukbiobank_phantoms / "ukb.csv").open(newline="") as file:
        return {row["eid"]: row for row in csv.DictReader(file)}


def members(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return set(archive.namelist())


def read(root: Path, person: Participant, name: str, instance: int = 2) -> nib.nifti1.Nifti1Image:
    """An image of a person, as stored."""
    field = 20252 if name.startswith("T1/") else 20253
    with zipfile.ZipFile(root / f"{person.eid}_{field}_{instance}_0.zip") as archive:
        return nib.nifti1.Nifti1Image.from_bytes(gzip.decompress(archive.read(name)))


def voxels(root: Path, person: Participant, name: str) -> np.ndarray:
    """x y z in RAS order, 1 for the brightest value of the template."""
    image = nib.funcs.as_closest_canonical(read(root, person, name))
    return np.asarray(image.dataobj, dtype=np.float64) / 1000


def complete(people: list[Participant]) -> list[Participant]:
    return [person for person in people if person.usable(2) and person.has_flair]


def test_a_cohort_is_a_function_of_its_seed(tmp_path: Path) -> None:
    for name in "ab":
        words = ["--out", str(tmp_path / name), "--num_subjects", "1", "--seed", str(SEED)]
        assert main(["phantom", "ukbiobank", *words]) == 0
    first, again = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab")
    assert first == again
    assert first["withdrawals.txt"] == b""  # or nobody would be left
    assert not {p.seed for p in participants(NUM, SEED)} & {p.seed for p in participants(NUM, SEED + 1)}


def test_the_layout_is_that_of_the_bulk_fields(ukbiobank_phantoms: Path, people: list[Participant]) -> None:
    expected = {}
    for person in people:
        for instance in person.instances:
            expected[f"{person.eid}_20252_{instance}_0.zip"] = T1 if person.usable(instance) else UNUSABLE
            if person.has_flair:
                expected[f"{person.eid}_20253_{instance}_0.zip"] = FLAIR
    assert {path.name: members(path) for path in ukbiobank_phantoms.glob("*.zip")} == expected
    assert {len(name.split("_")[0]) for name in expected} == {7}
    kinds = list(expected.values())
    assert UNUSABLE in kinds  # what a loader must meet is there
    assert kinds.count(FLAIR) < len(kinds) / 2
    assert any("_3_0" in name for name in expected)


def test_the_person_who_withdrew_is_still_there(ukbiobank_phantoms: Path, table: dict[str, dict[str, str]]) -> None:
    (eid,) = (ukbiobank_phantoms / "withdrawals.txt").read_text().splitlines()
    assert list(ukbiobank_phantoms.glob(f"{eid}_20252_2_0.zip"))
    assert table[eid]["25010-2.0"]


def test_the_table_knows_more_people_than_were_scanned(
    table: dict[str, dict[str, str]], people: list[Participant]
) -> None:
    assert {person.eid for person in people} < set(table)
    for person in people:
        row = table[person.eid]
        assert row["31-0.0"] == str(int(person.male))
        for instance in (2, 3):
            scanned = instance in person.instances
            assert row[f"21003-{instance}.0"] == (str(int(person.age(instance))) if scanned else "")
            usable = scanned and person.usable(instance)
            fields = (25000, *range(25003, 25011), 25781)
            assert {bool(row[f"{field}-{instance}.0"]) for field in fields} == {usable}


def test_volumes_are_those_of_the_drawn_tissues(table: dict[str, dict[str, str]], people: list[Participant]) -> None:
    """Every volume by its definition, from the shares of the voxels; the normalised ones are those in MNI space."""
    for person in complete(people)[:2]:
        row = {field: float(table[person.eid][f"{field}-2.0"]) for field in ("25000", "25781", *VOLUMES)}
        native, mni = tissues.anatomies(person.build(2))
        for (normalised, raw), share in zip(zip(VOLUMES[::2], VOLUMES[1::2], strict=True), SHARES, strict=True):
            assert row[raw] == pytest.approx(8 * share(native).sum(dtype=np.float64), rel=1e-5)
            assert row[normalised] == pytest.approx(row[raw] * row["25000"], rel=1e-5)
            assert row[normalised] == pytest.approx(8 * share(mni).sum(dtype=np.float64), rel=0.02)
        assert row["25781"] == pytest.approx(8 * native.lesions.sum(dtype=np.float64), rel=1e-5)


def test_volumes_can_be_measured_in_the_files(
    ukbiobank_phantoms: Path, table: dict[str, dict[str, str]], people: list[Participant]
) -> None:
    for person in complete(people):
        t1 = voxels(ukbiobank_phantoms, person, "T1/T1_unbiased_brain.nii.gz")
        brain = np.interp(t1, (tissues.CSF, tissues.GREY), (0, 1)).sum() * 8
        assert brain == pytest.approx(float(table[person.eid]["25010-2.0"]), rel=0.01)


def test_t1_and_flair_show_one_head(ukbiobank_phantoms: Path, people: list[Participant]) -> None:
    pairs = (
        ("T1/T1_unbiased_brain.nii.gz", "T2_FLAIR/T2_FLAIR_unbiased_brain.nii.gz"),
        ("T1/T1_brain_to_MNI.nii.gz", "T2_FLAIR/T2_FLAIR_brain_to_MNI.nii.gz"),
    )
    first, second = complete(people)[:2]
    for t1_name, flair_name in pairs:
        t1, flair = read(ukbiobank_phantoms, first, t1_name), read(ukbiobank_phantoms, first, flair_name)
        np.testing.assert_array_equal(t1.affine, flair.affine)
        assert t1.shape == flair.shape
        expected = np.interp(voxels(ukbiobank_phantoms, first, t1_name), *tissues.FLAIR)
        alike, other = (
            np.corrcoef(expected.ravel(), voxels(ukbiobank_phantoms, person, flair_name).ravel())[0, 1]
            for person in (first, second)
        )
        assert alike > 0.97
        assert other < alike - 0.02


def test_flair_has_the_contrast_of_flair(people: list[Participant]) -> None:
    native, _ = tissues.anatomies(people[0].build(2))
    flair, healthy = native.flair(), native.lesions < 0.01
    grey, white = (flair[(share > 0.9) & healthy].mean() for share in (native.grey, native.white))
    assert flair[native.ventricles > 0.9].mean() < 0.25 * white
    assert grey > 1.1 * white
    assert flair[native.lesions > 0.8].mean() > 1.2 * grey


def test_age_changes_a_head(people: list[Participant]) -> None:
    for person in people[:2]:
        aged = [tissues.anatomies(replace(person, age_years=age).build(2))[1].volumes_mm3() for age in (50, 70)]
        volumes = {name: np.diff([each[name] for each in aged]) for name in aged[0]}
        assert (volumes["ventricles"] > 2000).all()
        assert (volumes["grey"] + volumes["white"] < -9000).all()
        assert (volumes["lesions"] >= 0).all()


def test_images_lie_where_their_affine_says(ukbiobank_phantoms: Path, people: list[Participant]) -> None:
    """The template is symmetric, a person is not."""
    person = people[0]
    image = read(ukbiobank_phantoms, person, "T1/T1_brain_to_MNI.nii.gz")
    assert image.shape == (91, 109, 91)
    np.testing.assert_array_equal(image.affine, [[-2, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
    native, mni = tissues.anatomies(person.build(2))
    for name, drawn in (("T1_unbiased_brain", native), ("T1_brain_to_MNI", mni)):
        file = nib.funcs.as_closest_canonical(read(ukbiobank_phantoms, person, f"T1/{name}.nii.gz"))
        np.testing.assert_allclose(file.affine, drawn.affine)
        stored, t1 = np.asarray(file.dataobj).ravel(), drawn.t1()
        likeness = np.corrcoef([stored, t1.ravel(), t1[::-1].ravel()])[0]
        assert likeness[1] > 0.99 > likeness[2] + 0.01
    place = np.array([-2, -60, 30, 1])  # of MNI space, so a point of the scanner too, the head being smaller there
    scaled = np.append(place[:3] * person.build(2).size, 1)
    values = [
        head.values[tuple(np.round(np.linalg.inv(head.affine) @ at)[:3].astype(int))]
        for head, at in ((native, scaled), (mni, place))
    ]
    assert values[0] == pytest.approx(values[1], abs=0.1)
