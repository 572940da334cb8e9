"""`ADNIDataModule`: which images of a LONI or BIDS tree are taken, whose they are, and what is refused."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from data_modules.adni import ADNIDataModule
from data_modules.recipes.volumes import Preprocessing
from data_modules.sources import Rejected, Scan
from lit_medgen.errors import InputError, MissingDataError
from lit_medgen.images.nifti import write_nifti

COLUMNS = [
    *("Image Data ID", "Subject", "Group", "Sex", "Age", "Visit", "Modality", "Description", "Type"),
    *("Acq Date", "Format", "Downloaded"),
]
SCALED = "MPR__GradWarp__B1_Correction__N3__Scaled"
TINY = Preprocessing(size=(4, 4, 4), field_of_view_mm=(12.0, 12.0, 12.0))
Module = Callable[..., ADNIDataModule]


@pytest.fixture
def module(tmp_path: Path) -> Module:
    """The data module of `tmp_path / "raw"`."""

    def make(**options: object) -> ADNIDataModule:
        return ADNIDataModule(
            str(tmp_path / "raw"), store_dir=str(tmp_path / "store"), preprocessing=TINY, num_jobs=1, **options
        )

    return make


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """An empty download."""
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


def write_head(path: Path, seed: int = 0) -> Path:
    """Six voxels of 2 mm a side, another image for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).integers(50, 200, (6, 6, 6)).astype(np.int16)
    write_nifti(path, voxels, np.diag([2.0, 2.0, 2.0, 1.0]))
    return path


def write_series(folder: Path) -> None:
    """Six slices of six by six pixels, 2 mm apart."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(6):
        data = pydicom.Dataset()
        data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, pydicom.uid.generate_uid()
        data.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.1"
        data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2 * k]
        data.PixelSpacing = [2, 2]
        data.Rows = data.Columns = 6
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
        data.PixelData = np.random.default_rng(k).integers(50, 200, (6, 6)).astype("<u2").tobytes()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.save_as(folder / f"ADNI_br_raw_{k}.dcm", enforce_file_format=True)


def folder_of(root: Path, person: str, image: str, date: str = "2006-11-02", series: str = SCALED) -> Path:
    """The folder of one image, as LONI names it."""
    return root / person / series / f"{date}_08_16_44.0" / image


def row(image: str, person: str, date: str = "11/2/2006", **changes: str) -> dict[str, str]:
    """One row of the collection CSV."""
    return dict.fromkeys(COLUMNS, "") | {
        "Image Data ID": image,
        "Subject": person,
        "Group": "CN",
        "Sex": "F",
        "Age": "85",
        "Description": "MPR; GradWarp; B1 Correction; N3; Scaled",
        "Acq Date": date,
        **changes,
    }


def write_table(path: Path, *rows: dict[str, str]) -> Path:
    """The collection CSV, every field quoted."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_ALL)
        table.writeheader()
        table.writerows(rows)
    return path


def only(scans: list[Scan], rejected: list[Rejected]) -> Scan:
    """The one scan there is, with nothing refused."""
    assert not rejected
    assert len(scans) == 1
    return scans[0]


# The LONI layout.


@pytest.mark.parametrize("level", ["", "ADNI"], ids=["root", "root/ADNI"])
@pytest.mark.parametrize("image", ["I40966", "40966"])
def test_an_image_is_found_by_its_id(image: str, level: str, raw: Path, module: Module) -> None:
    head = write_head(folder_of(raw / level, "002_S_0295", "I40966") / "head.nii")
    write_table(raw / "collection.csv", row(image, "002_S_0295", date=""))  # nothing else could match
    assert only(*module().scans()) == Scan(
        head, "002_S_0295", "2006-11-02", {"age_years": 85.0, "sex": 0.0, "diagnosis": 0.0}
    )


@pytest.mark.parametrize("date", ["11/2/2006", "11/02/2006"])
def test_a_series_folder_is_found_by_person_and_day(date: str, raw: Path, module: Module) -> None:
    write_head(folder_of(raw, "002_S_0295", "S21856") / "head.nii.gz")
    visits = [row("I1", "002_S_0295", "5/2/2006", Age="84"), row("I2", "002_S_0295", date, Age="85")]
    write_table(raw / "collection.csv", *visits)
    assert only(*module().scans()).attributes["age_years"] == 85


def test_the_number_of_a_series_is_not_that_of_an_image(raw: Path, module: Module) -> None:
    """Series and images are numbered apart, so S1 of one person may meet I1 of another."""
    write_head(folder_of(raw, "002_S_0295", "S1") / "head.nii")
    write_head(folder_of(raw, "003_S_0001", "I1") / "head.nii", seed=1)
    write_table(raw / "collection.csv", row("I1", "003_S_0001", Age="60"), row("I2", "002_S_0295", Age="80"))
    scans, rejected = module().scans()
    assert not rejected
    assert {scan.person: scan.attributes["age_years"] for scan in scans} == {"002_S_0295": 80, "003_S_0001": 60}


def test_a_row_of_another_person_is_not_taken(raw: Path, module: Module) -> None:
    write_head(folder_of(raw, "002_S_0295", "I1") / "head.nii")
    write_table(raw / "collection.csv", row("I1", "003_S_0001"))
    scans, rejected = module().scans()
    assert not scans
    assert "no row of collection.csv" in rejected[0].reason


@pytest.mark.parametrize(
    ("there", "best"),
    [
        ((SCALED, "MPR__GradWarp__B1_Correction__N3", "MPRAGE"), SCALED),
        (("MPR-R__GradWarp__B1_Correction__N3", "MPRAGE"), "MPR-R__GradWarp__B1_Correction__N3"),
        (("MPR__GradWarp__B1_Correction", "Accelerated_Sagittal_MPRAGE"), "MPR__GradWarp__B1_Correction"),
        (("Sag_IR-SPGR", "Axial_DTI", "3-plane_localizer"), "Sag_IR-SPGR"),
    ],
)
def test_the_best_series_of_a_visit_is_taken(there: tuple[str, ...], best: str, raw: Path, module: Module) -> None:
    for k, series in enumerate(there):
        write_head(folder_of(raw, "002_S_0295", f"I{k}", series=series) / "head.nii", seed=k)
    write_table(raw / "collection.csv", *(row(f"I{k}", "002_S_0295", Age=str(60 + k)) for k in range(len(there))))
    scan = only(*module().scans())
    assert scan.path.parts[-4] == best
    assert scan.attributes["age_years"] == 60 + there.index(best)


def test_a_better_series_without_files_gives_way(raw: Path, module: Module) -> None:
    folder_of(raw, "002_S_0295", "I1").mkdir(parents=True)
    head = write_head(folder_of(raw, "002_S_0295", "I2", series="MPRAGE") / "head.nii")
    write_table(raw / "collection.csv", row("I1", "002_S_0295"), row("I2", "002_S_0295"))
    scans, rejected = module().scans()
    assert [scan.source for scan in scans] == [head]
    assert [(Path(bad.source).name, bad.reason) for bad in rejected] == [("I1", "no .nii or .dcm file in this folder")]


def test_other_series_are_taken_where_the_config_names_them(raw: Path, module: Module) -> None:
    for k, series in enumerate((SCALED, "Axial_DTI")):
        write_head(folder_of(raw, "002_S_0295", f"I{k}", series=series) / "head.nii", seed=k)
    write_table(raw / "collection.csv", row("I0", "002_S_0295"), row("I1", "002_S_0295"))
    assert only(*module(descriptions=["*DTI"]).scans()).path.parts[-4] == "Axial_DTI"


def test_a_folder_of_dicom_files_is_one_image(raw: Path, module: Module) -> None:
    write_series(folder_of(raw, "002_S_0295", "I7", series="MPRAGE"))
    write_table(raw / "collection.csv", row("I7", "002_S_0295"))
    accepted, rejected = module().prepare()
    assert not rejected
    assert len(accepted) == 1


def test_the_series_of_most_files_is_the_image_of_a_folder_of_several(raw: Path, module: Module) -> None:
    folder = folder_of(raw, "002_S_0295", "I7", series="MPRAGE")
    write_series(folder)
    for path in sorted(folder.glob("*.dcm"))[:2]:
        data = pydicom.dcmread(path)
        data.SeriesInstanceUID += ".2"
        data.save_as(path.with_name(f"0{path.name}"))
    write_table(raw / "collection.csv", row("I7", "002_S_0295"))
    accepted, [other] = module().prepare()
    assert len(accepted) == 1
    assert (other.source, other.reason) == (str(folder), "a second series in the folder of an image")


@pytest.mark.parametrize(
    ("group", "diagnosis"),
    [("CN", 0), ("SMC", 0), ("EMCI", 1), ("MCI", 1), ("LMCI", 1), ("AD", 2), ("Patient", math.nan), ("", math.nan)],
)
def test_attributes(group: str, diagnosis: float, raw: Path, module: Module) -> None:
    write_head(folder_of(raw, "002_S_0295", "I1") / "head.nii")
    write_table(raw / "collection.csv", row("I1", "002_S_0295", Group=group, Sex="M", Age="71.5"))
    wanted = {"age_years": 71.5, "sex": 1.0, "diagnosis": diagnosis}
    assert only(*module().scans()).attributes == pytest.approx(wanted, nan_ok=True)


def test_unknown_covariates_are_nan(raw: Path, module: Module) -> None:
    write_head(folder_of(raw, "002_S_0295", "I1") / "head.nii")
    write_table(raw / "collection.csv", row("I1", "002_S_0295", Group="", Sex="X", Age=""))
    assert all(math.isnan(value) for value in only(*module().scans()).attributes.values())


def test_people_without_image_and_images_without_row_are_listed(raw: Path, module: Module) -> None:
    head = write_head(folder_of(raw, "002_S_0295", "I1") / "head.nii")
    orphan = write_head(folder_of(raw, "002_S_0999", "I2") / "head.nii", seed=1)
    table = write_table(raw / "collection.csv", row("I1", "002_S_0295"), row("I3", "003_S_0001"))
    scans, rejected = module().scans()
    assert [scan.source for scan in scans] == [head]
    assert {bad.source: bad.reason for bad in rejected} == {
        str(orphan.parent): "no row of collection.csv for this image",
        f"{table}: 003_S_0001": "a subject without an image",
    }


def test_two_collections_are_not_chosen_from(raw: Path, module: Module) -> None:
    head = write_head(folder_of(raw, "002_S_0295", "I1") / "head.nii")
    write_table(raw / "a.csv", row("I1", "002_S_0295"))
    write_table(raw / "b.csv", row("I1", "002_S_0295", Age="20"))
    with pytest.raises(InputError, match=r"data\.init_args\.table: 2 CSV files"):
        module().scans()
    scan = only(*module(table="b.csv").scans())
    assert (scan.source, scan.attributes["age_years"]) == (head, 20)
    assert only(*module(table=str(raw / "a.csv")).scans()).attributes["age_years"] == 85


def test_other_tables_at_the_top_do_not_matter(raw: Path, module: Module) -> None:
    write_head(folder_of(raw / "ADNI", "002_S_0295", "I1") / "head.nii")
    write_table(raw / "ADNIMERGE.csv", {"RID": "295", "PTID": "002_S_0295", "AGE": "84.8"})
    write_table(raw / "ADNI" / "collection.csv", row("I1", "002_S_0295"))
    only(*module().scans())


@pytest.mark.parametrize("given", [False, True], ids=["found", "given"])
@pytest.mark.parametrize("column", ["Image Data ID", "Subject", "Sex", "Age"])
def test_a_missing_column_is_named(column: str, given: bool, raw: Path, module: Module) -> None:
    write_head(folder_of(raw, "002_S_0295", "I1") / "head.nii")
    short = {name: value for name, value in row("I1", "002_S_0295").items() if name != column}
    write_table(raw / "collection.csv", short)
    with pytest.raises(InputError) as caught:
        module(table="collection.csv" if given else None).scans()
    message = str(caught.value)
    assert repr(column) in message
    # Without its first two columns a file is not known for the collection: all that can be named is the key.
    found = given or column in ("Sex", "Age")
    assert ("collection.csv: no column" if found else "data.init_args.table: 0 CSV files") in message


def test_the_visits_of_a_person_stay_together(raw: Path, module: Module) -> None:
    rows = []
    for k in range(24):
        person, image, year = f"002_S_{k // 2:04}", f"I{k}", 2006 + k % 2
        write_head(folder_of(raw, person, image, f"{year}-11-02") / "head.nii", seed=k)
        rows.append(row(image, person, f"11/2/{year}", Age=str(60 + k)))
    write_table(raw / "collection.csv", *rows)
    data = module(fractions=(0.5, 0.2, 0.3))
    data.prepare_data()
    data.setup("fit")
    splits = [{record.person for record in records} for records in data.records.values()]
    assert sum(map(len, splits)) == 12
    assert sum(map(len, data.records.values())) == 24
    assert min(map(len, splits)) > 0
    stored = (data.address.folder / "manifest.csv").read_text()
    assert "002_S_" not in stored  # nobody is named


def test_an_empty_folder_says_where_to_get_the_data(raw: Path, module: Module) -> None:
    with pytest.raises(MissingDataError, match=r"data\.init_args\.root: no images under .*ida\.loni\.usc\.edu.*demo"):
        module().prepare()


# The BIDS layout.


def write_bids(raw: Path, person: str, session: str, run: str = "", seed: int = 0) -> Path:
    """One image of a BIDS tree."""
    return write_head(raw / person / session / "anat" / f"{person}_{session}{run}_T1w.nii.gz", seed)


def write_tsv(path: Path, *lines: str) -> None:
    """Rows of words as a TSV file."""
    path.write_text("\n".join("\t".join(line.split()) for line in lines) + "\n")


def test_bids_with_sessions(raw: Path, module: Module) -> None:
    people = ("sub-ADNI002S0295", "sub-ADNI003S0001")
    first, second = (write_bids(raw, people[0], session) for session in ("ses-M000", "ses-M012"))
    third = write_bids(raw, people[1], "ses-M000", seed=2)
    write_tsv(
        raw / "participants.tsv",
        "participant_id sex age_bl diagnosis_bl",
        f"{people[0]} M 70 CN",
        f"{people[1]} F 80 AD",
    )
    write_tsv(
        raw / people[0] / f"{people[0]}_sessions.tsv",
        "session_id age diagnosis sex",
        "ses-M000 70.0 CN n/a",  # unknown here, known in participants.tsv
        "ses-M012 71.1 MCI n/a",
    )
    scans, rejected = module().scans()
    assert not rejected
    assert {scan.source: (scan.person, scan.session) for scan in scans} == {
        first: (people[0], "ses-M000"),
        second: (people[0], "ses-M012"),
        third: (people[1], "ses-M000"),
    }
    assert [tuple(scan.attributes.values()) for scan in scans] == [(70.0, 1, 0), (71.1, 1, 1), (80.0, 0, 2)]


def test_bids_unknown_values_are_nan(raw: Path, module: Module) -> None:
    write_bids(raw, "sub-1", "ses-1")
    write_tsv(raw / "participants.tsv", "participant_id sex age_bl diagnosis_bl", "sub-1 n/a n/a n/a")
    scan = only(*module().scans())
    assert set(scan.attributes) == {"age_years", "sex", "diagnosis"}
    assert all(math.isnan(value) for value in scan.attributes.values())


def test_bids_takes_the_first_run_of_a_session(raw: Path, module: Module) -> None:
    first, _ = (write_bids(raw, "sub-1", "ses-1", run, seed) for seed, run in enumerate(("_run-01", "_run-02")))
    write_tsv(raw / "participants.tsv", "participant_id sex", "sub-1 F")
    assert only(*module().scans()).source == first


def test_bids_without_sessions(raw: Path, module: Module) -> None:
    head = write_head(raw / "sub-1" / "anat" / "sub-1_T1w.nii.gz")
    write_tsv(raw / "participants.tsv", "participant_id sex age", "sub-1 F 61")
    scan = only(*module().scans())
    assert (scan.source, scan.attributes["age_years"], scan.attributes["sex"]) == (head, 61, 0)


def test_bids_lists_people_without_image_and_images_without_row(raw: Path, module: Module) -> None:
    write_bids(raw, "sub-1", "ses-1")
    orphan = write_bids(raw, "sub-3", "ses-1")
    write_tsv(raw / "participants.tsv", "participant_id sex", "sub-1 F", "sub-2 M")
    scans, rejected = module().scans()
    assert [scan.person for scan in scans] == ["sub-1"]
    assert {bad.source: bad.reason for bad in rejected} == {
        f"{raw / 'participants.tsv'}: sub-2": "a subject without an image",
        str(orphan): "no row of participants.tsv for this image",
    }


def test_bids_without_the_table_names_it(raw: Path, module: Module) -> None:
    write_bids(raw, "sub-1", "ses-1")
    with pytest.raises(MissingDataError, match=r"participants\.tsv: no such table"):
        module().scans()
    write_tsv(raw / "participants.tsv", "name sex", "sub-1 F")
    with pytest.raises(InputError, match=r"participants\.tsv: no column 'participant_id'"):
        module().scans()


# Names of series, and cells.


@pytest.mark.parametrize(
    "series",
    [
        *("MT1__GradWarp__N3m", "mt1__gradwarp__n3m", "MT1__N3m", "mprage", "MP-RAGE", "mp_rage_repeat", "MP_RAGE"),
        *("IR-FSPGR", "Sag_IR-FSPGR", "sag_ir-spgr", "ADNI_Shoulder__MPRAGE", "Accelerated_SAG_IR-FSPGR"),
    ],
)
def test_t1_weighted_series_are_known_by_pattern(series: str, raw: Path, module: Module) -> None:
    write_head(folder_of(raw, "002_S_0295", "I1", series=series) / "head.nii")
    write_table(raw / "collection.csv", row("I1", "002_S_0295"))
    only(*module().scans())


@pytest.mark.parametrize("pattern", ["axial t2*", "AXIAL-T2?FLAIR", "*Flair"])
def test_a_pattern_is_blind_to_case_blanks_and_punctuation(pattern: str, raw: Path, module: Module) -> None:
    write_head(folder_of(raw, "002_S_0295", "I1", series="Axial_T2_FLAIR") / "head.nii")
    write_table(raw / "collection.csv", row("I1", "002_S_0295"))
    only(*module(descriptions=[pattern]).scans())


def test_a_subject_without_a_known_series_says_which_there_are(raw: Path, module: Module) -> None:
    for k, series in enumerate(("Axial_T2-FLAIR", "3-plane_localizer")):
        write_head(folder_of(raw, "002_S_0295", f"I{k}", series=series) / "head.nii", seed=k)
    table = write_table(raw / "collection.csv", row("I0", "002_S_0295"), row("I1", "002_S_0295"))
    scans, rejected = module().scans()
    assert (scans, [bad.source for bad in rejected]) == ([], [f"{table}: 002_S_0295"])
    assert rejected[0].reason == (
        "a subject without an image; there are 3-plane_localizer, Axial_T2-FLAIR; name what to take in "
        "data.init_args.descriptions"
    )


def test_cells_of_the_collection(raw: Path, module: Module) -> None:
    cells = [("Female", " 070Y", "cn"), (" m", "70,5", "EMCI "), ("x", "89+", "Phantom")]
    rows = []
    for k, (sex, age, group) in enumerate(cells):
        write_head(folder_of(raw, f"002_S_000{k}", f"I{k}") / "head.nii", seed=k)
        rows.append(row(f"I{k} ", f" 002_S_000{k}", Sex=sex, Age=age, Group=group))
    write_table(raw / "collection.csv", *rows)
    data = module()
    scans, rejected = data.scans()
    assert not rejected
    found = [list(scan.attributes.values()) for scan in scans]
    np.testing.assert_allclose(found, [[70, 0, 0], [70.5, 1, 1], [np.nan] * 3])
    told = data.unread.lines(owner=True)
    assert [line.partition(" cells")[0] for line in told] == [
        "column 'Age': 1 of 3",
        "column 'Sex': 1 of 3",
        "column 'Group': 1 of 3",
    ]


@pytest.mark.parametrize("layout", ["LONI", "BIDS"])
def test_an_empty_subject_is_refused(layout: str, raw: Path, module: Module) -> None:
    if layout == "LONI":
        write_head(folder_of(raw, "002_S_0295", "I1") / "head.nii")
        write_table(raw / "collection.csv", row("I1", "002_S_0295"), row("I2", " "))
    else:
        write_bids(raw, "sub-1", "ses-1")
        (raw / "participants.tsv").write_text("participant_id\tsex\nsub-1\tF\n\tM\n")
    with pytest.raises(InputError, match="is empty in line 3"):
        module().scans()


def test_rows_of_a_visit_that_disagree_say_nothing(raw: Path, module: Module) -> None:
    write_head(folder_of(raw, "002_S_0295", "S9") / "head.nii")
    write_table(raw / "collection.csv", row("I1", "002_S_0295", Age="60"), row("I2", "002_S_0295", Age="80"))
    scans, rejected = module().scans()
    assert not scans
    assert rejected[0].reason == "the rows of collection.csv for this visit disagree"
