"""Phantom cohorts: drawn again they are the same, the real loader reads them whole, and they hold what they claim."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from data_modules.adni import ADNIDataModule
from data_modules.phantoms import heads
from data_modules.recipes.volumes import Preprocessing
from lit_medgen.__main__ import main
from lit_medgen.images.nifti import read_nifti
from lit_medgen.seeds import mix

HEADER = (
    '"Image Data ID","Subject","Group","Sex","Age","Visit","Modality","Description","Type","Acq Date","Format",'
    '"Downloaded"'
)


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def content(root: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def images(root: Path) -> dict[str, Path]:
    """Image Data ID -> file."""
    return {path.parent.name: path for path in sorted(root.glob("ADNI/*/*/*/I*/*.nii"))}


def test_a_cohort_is_a_function_of_its_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        words = ["--out", str(tmp_path / name), "--num_subjects", "1", "--seed", str(seed)]
        assert main(["phantom", "adni", *words]) == 0
    a, b, c = (content(tmp_path / name) for name in "abc")
    assert a == b
    assert not {*a.values()} & {*c.values()}


def test_the_real_loader_reads_the_whole_tree(phantoms: Path, tmp_path: Path) -> None:
    small = Preprocessing(size=(8, 8, 8), field_of_view_mm=(192.0, 192.0, 192.0))
    data = ADNIDataModule(str(phantoms), preprocessing=small, store_dir=str(tmp_path), num_jobs=1)
    table = rows(phantoms / "ADNI_phantoms.csv")
    accepted, rejected = data.prepare()
    assert not rejected
    assert len(accepted) == len(table) == len(images(phantoms))
    visits = Counter(row["Subject"] for row in table)
    assert len(visits) == 6
    assert max(visits.values()) > 1
    assert sorted(Counter(record.person for record in accepted).values()) == sorted(visits.values())
    assert max(record.cut for record in accepted) < 0.01
    data.setup("fit")
    splits = [{record.person for record in records} for records in data.records.values()]
    assert sum(map(len, splits)) == 6  # nobody is in two


def test_the_collection_looks_as_if_downloaded(phantoms: Path) -> None:
    assert (phantoms / "ADNI_phantoms.csv").read_text().splitlines()[0] == HEADER
    for row in rows(phantoms / "ADNI_phantoms.csv"):
        path = images(phantoms)[row["Image Data ID"]]
        person, series, date, image = path.parts[-5:-1]
        month, day, year = row["Acq Date"].split("/")
        assert date == f"{year}-{int(month):02}-{int(day):02}_08_00_00.0"
        assert person == row["Subject"]
        assert series == "".join(letter if letter.isalnum() else "_" for letter in row["Description"])
        assert path.name.startswith(f"ADNI_{person}_MR_{series}_Br_")
        assert path.name.endswith(f"_{image}.nii")


def test_covariates_agree_with_the_truth(phantoms: Path) -> None:
    truth = {row["Image Data ID"]: row for row in rows(phantoms / "phantom_truth.csv")}
    people = {person.ptid: person for person in heads.people(6, seed=1)}
    table = rows(phantoms / "ADNI_phantoms.csv")
    assert truth.keys() == {row["Image Data ID"] for row in table}
    assert people.keys() == {row["Subject"] for row in table}
    for row in table:
        true, person = truth[row["Image Data ID"]], people[row["Subject"]]
        assert abs(float(row["Age"]) - float(true["age_years"])) <= 0.505  # whole years
        assert row["Sex"] == person.sex
        years = int(row["Visit"].removeprefix("m")) / 12 if row["Visit"] != "sc" else 0
        assert float(true["age_years"]) == pytest.approx(person.age_years + years, abs=0.006)
        low, high = {"CN": (0, 25), "MCI": (25, 35), "AD": (35, 1000)}[row["Group"]]
        assert low - 0.01 <= float(true["ventricles_ml"]) <= high + 0.01


def test_smooth_fields_are_cubic_splines_through_their_knots() -> None:
    """One axis after the other is the same as all at once, by scipy."""
    shape = (9, 14, 11)
    found = heads.smooth_field(shape, 4, np.random.default_rng(0))
    knots = np.random.default_rng(0).normal(size=(4, 4, 4))
    zoom = [length / 4 for length in shape]
    np.testing.assert_allclose(found, ndimage.zoom(knots, zoom, order=3, mode="nearest", grid_mode=True), atol=1e-6)


def test_ventricles_grow_with_age() -> None:
    ages = (56, 72, 88)
    volumes = np.array([[heads.draw(person, age, scan_seed=0)[1] for age in ages] for person in heads.people(3, 2)])
    assert (np.diff(volumes, axis=1) > 0).all()
    assert (np.diff(volumes.mean(axis=0)) > 2).all()
    assert ((volumes > 3) & (volumes < 120)).all()  # mL, as in people


def test_scans_of_a_person_differ_by_noise_and_bias_alone() -> None:
    person = heads.people(1, 3)[0]
    (a, volume), (b, same_volume) = (heads.draw(person, 70, scan_seed=seed) for seed in (0, 1))
    assert volume == same_volume
    assert not np.array_equal(a, b)
    other, _ = heads.draw(replace(person, seed=mix("other")), 70, scan_seed=0)

    def likeness(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.corrcoef(x.ravel(), y.ravel())[0, 1])

    assert likeness(a, b) > 0.98
    assert likeness(a, other) < likeness(a, b) - 0.01


def test_left_and_right_are_those_of_the_template(phantoms: Path) -> None:
    template = heads.template()
    for path in images(phantoms).values():
        image = nib.load(path)
        np.testing.assert_allclose(image.affine, template.affine)
        assert nib.aff2axcodes(image.affine)[0] == ("R" if template.affine[0, 0] > 0 else "L")
        assert image.header["qform_code"] > 0
        assert image.header["sform_code"] > 0
        voxels, affine = read_nifti(path)
        # x grows to the right, and the head lies about the middle of MNI space.
        assert affine[0, 0] > 0
        middle = affine[:3, :3] @ np.argwhere(voxels > 200).mean(axis=0) + affine[:3, 3]
        assert np.abs(middle - [0, -20, 10]).max() < 12


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "nothing"),
        (["lungs"], "'lungs'|lungs"),
        (["adni"], "out"),
        (["adni", "--out", "{tmp}", "--num_subjects", "0"], "--num_subjects"),
        (["adni", "--out", "{tmp}", "--num_subjects", "10000"], "--num_subjects"),
        (["adni", "--out", "{tmp}", "--num_subjects", "few"], "num_subjects"),
        (["adni", "--out", "{tmp}", "--num_people", "3"], "num_people"),
        (["adni", "--out", "{tmp}/file/below"], "--out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_get_one_line(
    words: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["phantom", *(word.format(tmp=tmp_path) for word in words)]) == 2
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1
    assert printed.err.startswith("error: phantom")
    assert any(name in printed.err for name in named.split("|"))
    assert "Traceback" not in printed.out
    assert not list(tmp_path.glob("*.csv"))
