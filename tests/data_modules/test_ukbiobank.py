"""`UKBiobankDataModule`: bulk zips, tables in three naming schemes, visits of a person, what is refused."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_ukbiobank import (
    EIDS,
    HEADER,
    T1,
    UNUSABLE,
    module,
    nifti,
    preprocessing,
    write_table,
    write_ukbiobank,
    write_zip,
)

from data_modules.records import person_hash
from data_modules.tables import Numbers
from data_modules.ukbiobank_table import Column, of_people, parsed
from data_modules.views import OneSlice
from lit_medgen.errors import InputError, MissingDataError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return write_ukbiobank(tmp_path_factory.mktemp("ukb") / "bulk", flair=True)


def attributes(root: Path, store: Path, **options: Any) -> dict[tuple[str, str], dict[str, float]]:
    """Person (hashed) and visit -> what the store knows of them."""
    accepted, _ = module(root, store, **options).prepare()
    return {(record.person, record.session): record.attributes for record in accepted}


def reasons(root: Path, store: Path, **options: Any) -> dict[str, str]:
    """Name of a raw file -> why it was rejected."""
    _, rejected = module(root, store, **options).prepare()
    return {Path(row.source.partition(": ")[0]).name: row.reason for row in rejected}


def test_zips_are_read_as_they_are(root: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    data = module(root, tmp_path)
    data.prepare_data()
    data.setup("fit")
    assert len(data.store.records) == 9
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert data.anatomy == "brain"
    known = {record.person: record.attributes for record in data.store.records if record.session == "2"}
    third = known[person_hash(EIDS[2])]
    assert third == {"sex": 0.0, "age_years": 52.0, "ventricles_ml": 32.0, "brain_ml": 1400.002}
    batch = next(iter(data.train_dataloader()))
    assert batch.image.shape == (1, 1, 10, 12, 9)
    assert data.spec.codes == ("sex",)


def test_visits_of_a_person_stay_together_and_have_their_own_age(root: Path, tmp_path: Path) -> None:
    found = attributes(root, tmp_path)
    first = person_hash(EIDS[0])
    assert found[first, "2"]["age_years"] == 50
    assert found[first, "3"]["age_years"] == 53
    assert found[first, "3"]["sex"] == 0
    assert math.isnan(found[first, "3"]["ventricles_ml"])


def test_flair_by_itself_and_beside_t1(root: Path, tmp_path: Path) -> None:
    alone = module(root, tmp_path, modality="flair")
    alone.prepare_data()
    alone.setup("fit")
    assert alone.anatomy == ""
    flair = {record.person + record.session: alone.store.read(record) for record in alone.store.records}
    both = module(root, tmp_path, preprocessing=preprocessing(sources=("flair",)))
    both.prepare_data()
    both.setup("fit")
    assert both.spec.sources == ("flair",)
    for record in both.store.records:
        # The grids are placed by the brain, whose outline is one and the same in both.
        torch.testing.assert_close(both.store.read(record, name="flair"), flair[record.person + record.session])


@pytest.mark.parametrize("asked", [{"sources": ("t2",)}, {"channels": ("t1", "t2")}, {"sources": ("t1",)}])
def test_what_is_beside_no_image_is_refused_by_what_is_there(root: Path, tmp_path: Path, asked: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"asks for a 't[12]' beside each t1 image, .* there is flair: name that"):
        module(root, tmp_path, preprocessing=preprocessing(**asked)).prepare_data()


def test_slices_and_volumes_are_two_views_of_one_store(root: Path, tmp_path: Path) -> None:
    volumes, slices = module(root, tmp_path), module(root, tmp_path, view=OneSlice(3, per_person=2), axis="axial")
    volumes.prepare_data()
    slices.setup("fit")
    volumes.setup("fit")
    assert slices.store.digest == volumes.store.digest
    assert slices.spec.size == (10, 12)
    assert volumes.spec.size == (10, 12, 9)


def test_unusable_scans_are_rejected_by_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_ukbiobank(tmp_path / "bulk", 5)
    for eid in EIDS[3:5]:
        write_zip(root / f"{eid}_20252_2_0.zip", {UNUSABLE: nifti(tmp_path, 7)})
    capsys.readouterr()
    module(root, tmp_path).prepare_data()
    printed = capsys.readouterr().out
    assert "accepted 4 of 6 images, 3 people" in printed
    assert "rejected 2: failed UK Biobank's quality control: there is only an unusable/ image" in printed
    assert not any(eid in printed for eid in EIDS)


def test_layouts_nested_unzipped_and_twice(tmp_path: Path) -> None:
    root = write_ukbiobank(tmp_path / "bulk", 4)
    (root / "20252").mkdir()
    shutil.move(root / f"{EIDS[1]}_20252_2_0.zip", root / "20252")
    (root / f"{EIDS[2]}_20252_2_0.zip").unlink()
    unzipped = root / "unzipped" / f"{EIDS[2]}_20252_2_0" / T1
    unzipped.parent.mkdir(parents=True)
    unzipped.write_bytes(nifti(tmp_path, 22))
    elsewhere = tmp_path / "annex" / "content"
    elsewhere.parent.mkdir()
    shutil.move(root / f"{EIDS[3]}_20252_2_0.zip", elsewhere)
    (root / f"{EIDS[3]}_20252_2_0.zip").symlink_to(elsewhere)
    write_zip(root / f"{EIDS[0]}_20252_2_1.zip", {T1: nifti(tmp_path, 5)})
    accepted, rejected = module(root, tmp_path).prepare()
    assert len(accepted) == 5
    assert [(Path(row.source).name, row.reason) for row in rejected] == [
        (f"{EIDS[0]}_20252_2_1.zip", "another image of the same visit")
    ]


def test_an_unzipped_unusable_scan_is_told(tmp_path: Path) -> None:
    root = write_ukbiobank(tmp_path / "bulk", 4)
    folder = root / f"{EIDS[1]}_20252_3_0"
    (folder / UNUSABLE).parent.mkdir(parents=True)
    (folder / UNUSABLE).write_bytes(nifti(tmp_path, 5))
    (root / f"{EIDS[2]}_20252_3_0" / "T1").mkdir(parents=True)
    found = reasons(root, tmp_path)
    assert "unusable/" in found[f"{EIDS[1]}_20252_3_0"]
    assert found[f"{EIDS[2]}_20252_3_0"] == f"no '{T1}' in this folder"


def test_a_scan_keeps_its_place_without_flair(tmp_path: Path) -> None:
    root = write_ukbiobank(tmp_path / "bulk", 4, flair=True)
    write_zip(root / f"{EIDS[1]}_20253_2_0.zip", {"T2_FLAIR/unusable/T2_FLAIR_orig_defaced.nii.gz": b"x"})
    (root / f"{EIDS[2]}_20253_2_0.zip").write_bytes(b"no zip")
    (root / f"{EIDS[3]}_20253_2_0.zip").unlink()
    data = module(root, tmp_path, preprocessing=preprocessing(sources=("flair",)))
    accepted, rejected = data.prepare()
    assert {record.person: record.beside for record in accepted if record.session == "2"} == {
        person_hash(eid): ("flair",) if k == 0 else () for k, eid in enumerate(EIDS[:4])
    }
    assert {Path(row.source).name for row in rejected} == {f"{EIDS[k]}_20253_2_0.zip" for k in (1, 2)}


def test_other_zips_are_passed_over_by_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_ukbiobank(tmp_path / "bulk", 4)
    for name in (f"{EIDS[0]}_20227_2_0.zip", f"{EIDS[0]}_20252_2_0 (1).zip", "software.zip"):
        write_zip(root / name, {"x": b""})
    capsys.readouterr()
    module(root, tmp_path).prepare_data()
    assert "passed over 3 of 8 zips: not named <eid>_20252_<instance>_<array>.zip" in capsys.readouterr().out


def test_without_data_the_way_to_get_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "withdrawals.txt").touch()
    with pytest.raises(MissingDataError, match=r"no images under .*ukbiobank\.ac\.uk.*phantom ukbiobank"):
        module(tmp_path, tmp_path / "store").prepare()


# Tables.

SCHEMES: dict[str, Callable[[int, int], str]] = {
    "ukbconv": lambda number, instance: f"{number}-{instance}.0",
    "R": lambda number, instance: f"f.{number}.{instance}.0",
    "RAP": lambda number, instance: f"p{number}" if number == 31 else f"p{number}_i{instance}",
    "RAP with entity": lambda number, instance: f"participant.p{number}" + f"_i{instance}" * (number != 31),
}
IDS = {"ukbconv": "eid", "R": "f.eid", "RAP": "eid", "RAP with entity": "participant.eid"}


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_columns_are_found_in_every_scheme(scheme: str, delimiter: str, tmp_path: Path) -> None:
    cells = {(31, 0): 1, (21003, 2): 61, (21003, 3): 64, (25003, 2): 41000, (25004, 2): 35000, (25009, 2): 1500000}
    cells |= {(25010, 2): 1160000, (25781, 2): 5000, (25003, 3): 43000, (99999, 0): 7}
    header = [IDS[scheme], *(SCHEMES[scheme](*column) for column in cells)]
    write_table(tmp_path / "people.csv", header, [["1000223", *cells.values()]], delimiter)
    files = [tmp_path / "people.csv"]
    known = of_people(tmp_path, None, files, "normalised", Numbers())
    assert known.of("1000223", "2") == {"sex": 1, "age_years": 61, "ventricles_ml": 41, "brain_ml": 1500}
    third = known.of("1000223", "3")
    assert third.pop("brain_ml") != third
    assert third == {"sex": 1, "age_years": 64, "ventricles_ml": 43}
    raw = of_people(tmp_path, None, files, "measured", Numbers()).of("1000223", "2")
    assert raw == {"sex": 1, "age_years": 61, "ventricles_ml": 35, "brain_ml": 1160}


@pytest.mark.parametrize("name", ["eid", "31", "p31_", "x31_0_0", "31-0", "f.31.0", "p31_a", "31-0.0 ", "pp31"])
def test_other_names_are_no_columns(name: str) -> None:
    assert parsed(name) is None
    assert parsed("p20116_i1_a3") == Column(20116, 1, 3)


def test_what_is_unknown_is_nan(tmp_path: Path) -> None:
    rows = [
        ("1000001", "", "", "", ""),
        ("1000002", "-3", "-1", "0", "-1"),
        ("1000003", "NA", "n/a", "NaN", "inf"),
        ("1000004", "1", "400", "1e9", "12"),
        ("1000005", "Female", "50.5", "30000", "1400000"),
        ("redacted", "1", "60", "1", "1"),
        ("-7", "1", "60", "1", "1"),
        ("0", "1", "60", "1", "1"),
        ("", "1", "60", "1", "1"),
    ]
    write_table(tmp_path / "ukb.csv", ("eid", "31-0.0", "21003-2.0", "25003-2.0", "25009-2.0"), rows)
    known = of_people(tmp_path, "ukb.csv", [], "normalised", Numbers())
    for person in ("1000001", "1000002", "1000003"):
        assert all(map(math.isnan, known.of(person, "2").values()))
    fourth = known.of("1000004", "2")
    assert (fourth["sex"], fourth["brain_ml"]) == (1, 0.012)
    assert math.isnan(fourth["age_years"])
    assert math.isnan(fourth["ventricles_ml"])
    assert known.of("1000005", "2") == {"sex": 0, "age_years": 50.5, "ventricles_ml": 30, "brain_ml": 1400}
    assert sorted(known.rows) == [f"100000{k}" for k in range(1, 6)]
    assert known.lines == [
        "ukb.csv: 1 values of 21003-2.0 are not above 0 and at most 120, so they are unknown",
        "ukb.csv: 2 values of 25003-2.0 are not above 0 and at most 1e+07, so they are unknown",
        "ukb.csv: 4 rows are of people without an id (redacted, 0 or less): passed over",
    ]


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([("1000223", 1), ("abc", 0)], "'eid' is no number in line 3"),
        ([("1000223", 1), ("1000223", 0)], "1 rows repeat a eid, first line 3"),
    ],
)
def test_a_table_that_cannot_be_meant_is_one_line_without_ids(rows: Any, fault: str, tmp_path: Path) -> None:
    write_table(tmp_path / "ukb.csv", ("eid", "31-0.0"), rows)
    with pytest.raises(InputError, match=fault) as error:
        of_people(tmp_path, "ukb.csv", [], "normalised", Numbers())
    assert "1000223" not in str(error.value)


def test_the_table_is_found_or_asked_for(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "bulk"
    shutil.copytree(root, copy)
    (copy / "notes.csv").write_text("when,what\n1,2\n")
    (copy / "w1234_2024.csv").write_text("eid\n1\n")
    assert len(attributes(copy, tmp_path / "one")) == 9
    write_table(copy / "other.tsv", HEADER, [], "\t")
    with pytest.raises(InputError, match=r"data\.init_args\.table: 2 tables .*\(other\.tsv, ukb\.csv\); name the one"):
        attributes(copy, tmp_path / "two")
    assert len(attributes(copy, tmp_path / "three", table="ukb.csv")) == 9
    for name in ("other.tsv", "ukb.csv"):
        (copy / name).unlink()
    capsys.readouterr()
    data = module(copy, tmp_path / "four")
    data.prepare_data()
    assert "nothing is known of the people" in capsys.readouterr().out
    data.setup("fit")
    assert data.spec.attributes == {}


def test_a_scan_of_nobody_in_the_table_is_rejected(tmp_path: Path) -> None:
    """UK Biobank takes people who withdraw out of its tables."""
    root = write_ukbiobank(tmp_path / "bulk", 4)
    write_zip(root / f"{EIDS[9]}_20252_2_0.zip", {T1: nifti(tmp_path, 9)})
    assert reasons(root, tmp_path) == {f"{EIDS[9]}_20252_2_0.zip": "no row of ukb.csv for this person"}
