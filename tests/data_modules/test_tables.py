"""Tables: what has one meaning is read, every other cell is counted, and an id is one person's."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_run import one_line

from data_modules.adni import DIAGNOSES, DIAGNOSIS
from data_modules.chestxray_tables import VIEWS
from data_modules.folder import FolderDataModule
from data_modules.sources import Scan
from data_modules.tables import SEX, Numbers, read_table
from lit_medgen.__main__ import main
from lit_medgen.errors import InputError
from lit_medgen.images.nifti import write_nifti


def table(folder: Path, content: str | bytes, name: str = "t.csv") -> Path:
    """A file with this content."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


ROWS = [{"id": "s1", "age": "70,5", "name": "Bläss"}, {"id": "s2", "age": "61", "name": ""}]
FORMS = {
    "commas": 'id,age,name\ns1,"70,5",Bläss\ns2,61,\n',
    "semicolons": "id;age;name\ns1;70,5;Bläss\ns2;61;\n",
    "tabs": "id\tage\tname\ns1\t70,5\tBläss\ns2\t61\n",
    "blanks": 'id , age, name\n s1 , "70,5" , Bläss \n\ns2,61, \n',
    "comma at every end": 'id,age,name,\ns1,"70,5",Bläss,\ns2,61,,\n',
    "comma at the end of rows": 'id,age,name\ns1,"70,5",Bläss,\ns2,61,,\n',
    "Windows": 'id,age,name\r\ns1,"70,5",Bläss\r\n"s2",61\r\n,,\r\n',
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
@pytest.mark.parametrize("form", FORMS)
def test_one_table_in_all_forms(form: str, encoding: str, tmp_path: Path) -> None:
    found = read_table(table(tmp_path, FORMS[form].encode(encoding)))
    assert (found.columns[:3], found.rows) == (["id", "age", "name"], ROWS)


@pytest.mark.parametrize(
    "content",
    ["id,age\n1,s1,70\n2,s2,61\n", 'id,age\ns1,"70\ns2,61\n', "", "\n\n", "id,age\ns1,70\x00\n", "id,age\ns1,70,5\n"],
)
def test_columns_are_never_shifted(content: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"t\.csv: not a table"):
        read_table(table(tmp_path, content))


# Cells.


@pytest.mark.parametrize(
    ("column", "cells", "values"),
    [
        ("sex", "F M Female male f m FEMALE", [0, 1, 0, 1, 0, 1, 0]),
        ("Gender", "f m 0 1 1.0", [0, 1, 0, 1, 1]),
        ("sex", "0 1 n/a", [0, 1, math.nan]),
        ("sex", "1 2 M", [math.nan, math.nan, 1]),  # 1 may be male here
        ("sex", "X F", [math.nan, 0]),
        ("age", "70,5 71.5 1e2 -3 .5", [70.5, 71.5, 100, -3, 0.5]),
        ("age", "89+ >90 inf 1_0 ? 70", [*[math.nan] * 5, 70]),
        ("dose", "1,234 1,000", [math.nan] * 2),  # thousands or not
        ("dose", "1,234 0,5", [1.234, 0.5]),
        ("Patient Age", "058Y 006M 026W 010D 58y", [58, 0.5, 26 * 7 / 365.25, 10 / 365.25, 58]),
        ("AgeAtScan", "058Y", [58]),
        ("age_months", "058Y 6", [math.nan, 6]),
        ("stage", "006M 3", [math.nan, 3]),
    ],
)
def test_cells(column: str, cells: str, values: list[float]) -> None:
    numbers = Numbers()
    np.testing.assert_allclose(numbers.read(column, cells.split()), values)
    unread = [cell for cell, value in zip(cells.split(), values, strict=True) if value != value and cell != "n/a"]
    (line,) = numbers.lines(owner=True) or [""]
    assert (f"column {column!r}: {len(unread)} of {len(values)} cells" in line) == bool(unread)
    assert not unread or repr(unread[0]) in line
    assert ("are codes of unknown meaning" in line) == (cells == "1 2 M")
    assert ("are no numbers" in line) == bool(unread and cells != "1 2 M")
    assert not any(repr(unread[0]) in line for line in numbers.lines(owner=False))


@pytest.mark.parametrize(
    ("codes", "cells", "values"),
    [
        ({"F": 5, "M": 6}, "F male 6", [5, 6, 6]),
        ({"1": 1, "2": 0}, "1 2 2.0 3", [1, 0, 0, 3]),
        ({"89+": 90}, "89+ 70", [90, 70]),
        ({"Yes": 1, "no": 0}, "yes NO maybe", [1, 0, math.nan]),
    ],
)
def test_codes(codes: dict[str, float], cells: str, values: list[float]) -> None:
    np.testing.assert_allclose(Numbers().read("column", cells.split(), codes), values)


# Ids.


def listed(folder: Path, content: str, *names: str, person: str | None = None) -> list[Scan]:
    """The scans of empty files with these names and a table."""
    for name in names:
        (folder / name).touch()
    table(folder, content)
    return FolderDataModule(str(folder), table="t.csv", key="id", person=person, attributes=["age"]).scans()[0]


def test_ids_that_differ_by_a_blank_are_one_person(tmp_path: Path) -> None:
    content = "id,who,age\na,p 1,1\nb, p  1 ,2\nc,p\u00a01,3\n"
    scans = listed(tmp_path, content, *(f"{name}.nii.gz" for name in "abc"), person="who")
    assert [scan.person for scan in scans] == ["p 1"] * 3


def test_ids_that_a_program_took_for_numbers(tmp_path: Path) -> None:
    scans = listed(tmp_path, "id,who,age\na,12.0,1\nb,12,2\nc,0012,3\n", *(f"{n}.nii.gz" for n in "abc"), person="who")
    assert [scan.person for scan in scans] == ["12", "12", "0012"]
    versions = table(tmp_path, "id\n1.0\n1.1\n", "v.csv")
    assert read_table(versions).ids("id") == ["1.0", "1.1"]


@pytest.mark.parametrize("cell", ["", " ", "NaN", "n/a", "NULL"])
def test_an_empty_id_of_a_person_is_refused_by_its_line(cell: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"t\.csv: 'who' is empty in lines 3, 4; give every row one"):
        listed(tmp_path, f"id,who,age\na,p1,1\nb,{cell},2\nc,{cell},3\n", "a.nii.gz", person="who")


@pytest.mark.parametrize(("one", "other"), [("S1", "s1"), ("p 1", "p1"), ("12.0", "12")])
def test_ids_that_may_be_one_person_are_not_guessed(one: str, other: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'who' of lines 2, 3 differ in upper and lower case, blanks or a \.0 alone"):
        listed(tmp_path, f"id,who,age\na,{one},1\nb,{other},2\nc,x7,3\n", "a.nii.gz", person="who")


def test_two_rows_that_say_the_same_are_one(tmp_path: Path) -> None:
    (scan,) = listed(tmp_path, "id,age,note\na,1,x\na ,1,y\n", "a.nii.gz")
    assert scan.attributes == {"age": 1}
    with pytest.raises(InputError, match="1 rows repeat a id, first line 3, and say something else"):
        listed(tmp_path, "id,age\na,1\na ,2\n", "a.nii.gz")


def test_a_folder_with_a_blank_in_its_name_is_the_same_person(tmp_path: Path) -> None:
    assert Scan(tmp_path, " p1 ").person == Scan(tmp_path, "p1").person
    with pytest.raises(InputError, match="whose image it is"):
        Scan(tmp_path, " ")


def test_prepare_says_which_column_was_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["id;age;sex;"]
    for k, (age, sex) in enumerate([("70,5", "Female"), ("89+", " M"), ("058Y", "unclear")]):
        voxels = np.random.default_rng(k).integers(50, 200, (8, 8, 8)).astype(np.float32)
        write_nifti(tmp_path / f"s{k}.nii.gz", voxels, np.diag([2.0, 2.0, 2.0, 1.0]))
        rows.append(f"s{k};{age};{sex};")
    table(tmp_path, "\n".join(rows).encode("latin-1"))
    section = {
        "class_path": "data_modules.FolderDataModule",
        "init_args": {
            **{"root": str(tmp_path), "table": "t.csv", "key": "id", "attributes": ["age", "sex"], "num_jobs": 1},
            **{
                "store_dir": str(tmp_path / "store"),
                "preprocessing": {"size": [8, 8, 8], "field_of_view_mm": [16, 16, 16]},
            },
        },
    }
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(section))
    assert main(["prepare", "--data", str(tmp_path / "data.yaml")]) == 0
    printed = capsys.readouterr().out
    assert "column 'age': 1 of 3 cells are no numbers, so they are unknown, e.g. '89+'" in printed
    assert "column 'sex': 1 of 3 cells are no numbers, so they are unknown, e.g. 'unclear'" in printed
    with next(tmp_path.glob("store/*/manifest.csv")).open(newline="") as file:
        found = [(float(row["attribute.age"] or "nan"), row["attribute.sex"]) for row in csv.DictReader(file)]
    assert sorted(map(str, found)) == sorted(map(str, [(70.5, "0.0"), (math.nan, "1.0"), (58.0, "nan")]))
    table(tmp_path, "id;age;sex\ns0;1;F\ns1;2;F\ns2;3;F\ns0;4;F\n")
    assert main(["prepare", "--data", str(tmp_path / "data.yaml")]) == 2
    assert "t.csv: 1 rows repeat a id, first line 5" in one_line(capsys)


def test_names_of_categories_stand_in_the_order_of_their_codes() -> None:
    assert [*SEX.values()] == [*VIEWS.values()] == [0, 1]
    assert [DIAGNOSIS[name] for name in DIAGNOSES] == [0, 1, 2]
    data = FolderDataModule(root=".", table="t.csv", attributes=["age", "Sex", "gender"], codes={"gender": {"w": 0}})
    assert data.category_names() == {"Sex": ("F", "M")}
