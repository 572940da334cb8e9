"""The tables of ChestX-ray14: an image's findings, patient and pixels; boxes around findings; the official lists.

    Data_Entry_2017_v2020.csv, Data_Entry_2017.csv   a row for each image; the commas in `OriginalImage[Width,Height]`
                                                     part names of columns, and the older one ends with one more
    BBox_List_2017.csv                               a row for each box, x y w h in pixels of the 1024 x 1024 originals
    train_val_list.txt, test_list.txt                names of images, one a line, divided by patient

A name `00013118_008.png` says the patient and the number of the image, so a row that contradicts itself is noticed.
Errors name lines, and no patient.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from data_modules.split_lists import NameList
from data_modules.tables import NUMBER, Numbers, Table, named, read_table
from lit_medgen.errors import InputError, describe

LABELS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia"),
    *("Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax"),
)
"""Findings as the tables spell them; attributes are called the same in small letters."""
NO_FINDING = "No Finding"
FINDINGS = tuple(label.lower() for label in LABELS)
CODES = (*FINDINGS, "no_finding", "sex", "view")
"""Attributes that are 0 or 1."""
VIEWS = {"PA": 0.0, "AP": 1.0}
NAME = re.compile(r"(\d{8})_(\d{3})\.png", re.ASCII)
"""Of an image, in small letters: patient and number."""
INDEX, FINDING, BOX_FINDING = "Image Index", "Finding Labels", "Finding Label"
PATIENT, AGE, SEX, VIEW = "Patient ID", "Patient Age", "Patient Gender", "View Position"
BOX = ("Bbox [x", "y", "w", "h]")
SIDES, SPACING = ("OriginalImage[Width", "Height]"), ("OriginalImagePixelSpacing[x", "y]")
KEPT = {INDEX, FINDING, BOX_FINDING, PATIENT, AGE, SEX, VIEW, *BOX, *SIDES, *SPACING}
ORIGINAL = 1024
"""Pixels along each side of the delivered images, in which boxes are given."""
MAX_AGE = 120.0
"""Years; the table of 2017 has patients of more than 400, whose age is unknown."""
PLAUSIBLE_MM, PLAUSIBLE_PX = (0.01, 2.0), (64.0, 20_000.0)
LIST = re.compile(r"(train_val|test)_list(_nih)?\.txt", re.IGNORECASE)


class Box(NamedTuple):
    """A finding and the rectangle around it, in pixels from the top left corner; x to the right, y down."""

    finding: str
    x: float
    y: float
    width: float
    height: float


@dataclass
class Known:
    """What the table says of images, by name.

    Attributes:
        path: of the table; None if there is none.
        attributes: findings, no_finding, sex, age_years and view; NaN where unknown.
        extent_mm: width and height of the field that an image shows; NaN where unknown.
        lines: what to say of it.
    """

    path: Path | None = None
    attributes: dict[str, dict[str, float]] = field(default_factory=dict)
    extent_mm: dict[str, tuple[float, float]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)


def of_images(path: Path, numbers: Numbers) -> Known:
    """What a Data_Entry table says of every image; InputError if it contradicts itself or names an unknown finding.

    Args:
        path: of the table.
        numbers: reads the cells, and counts those that are no numbers.
    """
    table = read_table(path, keep=KEPT.__contains__)
    table.require(INDEX, FINDING)
    names = _names(table)
    if SPACING[1] in table.columns:
        _refuse(table, [not cell for cell in table.cells(SPACING[1])], "a row ends early", "all columns of the header")
    findings = _findings(table)
    columns = {
        "sex": numbers.read(SEX, table.cells(SEX)),
        "age_years": numbers.read(AGE, table.cells(AGE)),
        "view": numbers.read(VIEW, table.cells(VIEW), VIEWS, coded=True),
    }
    impossible = sum(not (0 <= age <= MAX_AGE) for age in columns["age_years"] if not math.isnan(age))
    columns["age_years"] = [age if 0 <= age <= MAX_AGE else math.nan for age in columns["age_years"]]
    extents = [_extent_mm(table, numbers, side, spacing) for side, spacing in zip(SIDES, SPACING, strict=True)]
    known = Known(path)
    for name, k in table.one_each(dict(enumerate(names)), table.columns, INDEX).items():
        known.attributes[name] = findings[k] | {key: column[k] for key, column in columns.items()}
        known.extent_mm[name] = extents[0][k], extents[1][k]
    given = [all(map(NUMBER.fullmatch, cells)) for cells in zip(*map(table.cells, (*SIDES, *SPACING)), strict=True)]
    if other := sum(each and any(map(math.isnan, mm)) for each, *mm in zip(given, *extents, strict=True)):
        known.lines.append(f"{path.name}: {other} images have sizes that no radiograph has, so they are unknown")
    if impossible:
        known.lines.append(f"{path.name}: {impossible} ages lie outside 0 to {MAX_AGE:g} years, so they are unknown")
    return known


def boxes(path: Path) -> dict[str, list[Box]]:
    """Name of an image -> its boxes in the original's 1024 x 1024 pixels; InputError for a row that is no box."""
    table = read_table(path, keep=KEPT.__contains__)
    table.require(INDEX, BOX_FINDING, *BOX)
    names = _names(table)
    spelt = {"infiltrate": "infiltration"}
    labels = [spelt.get(cell.lower(), cell.lower()) for cell in table.cells(BOX_FINDING)]
    _refuse(table, [label not in FINDINGS for label in labels], "an unknown finding", f"one of {', '.join(LABELS)}")
    sides = [[_number(cell) for cell in table.cells(column)] for column in BOX]
    found: dict[str, list[Box]] = {}
    rows = [Box(*row) for row in zip(labels, *sides, strict=True)]
    what = f"x, y, w and h inside {ORIGINAL} x {ORIGINAL} pixels"
    _refuse(table, [not _is_inside(box) for box in rows], "a box that is none", what)
    for name, box in zip(names, rows, strict=True):
        if box not in found.setdefault(name, []):
            found[name].append(box)
    return found


def official_lists(files: Iterable[Path]) -> dict[str, NameList]:
    """The lists of images "train_val" and "test"; nothing if there is none.

    InputError if one list lacks, or if there are several.
    """
    found: dict[str, list[Path]] = {"train_val": [], "test": []}
    for path in files:
        if match := LIST.fullmatch(path.name):
            found[match[1].lower()].append(path)
    if not any(found.values()):
        return {}
    if [len(each) for each in found.values()] != [1, 1]:
        raise InputError(
            f"data.init_args.official_split: {len(found['train_val'])} lists train_val_list.txt and "
            f"{len(found['test'])} lists test_list.txt; expected one of each: add what lacks, or set it to false to "
            "split patients by data.init_args.fractions."
        )
    return {key: NameList(str(path), _listed(path)) for key, (path,) in found.items()}


def _listed(path: Path) -> dict[str, int]:
    """The names in a list -> the line of each."""
    try:
        lines = [line.strip().lower() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read ({describe(error)}); expected names of images, one a line."
        ) from error
    if bad := [number for number, line in enumerate(lines, 1) if line and not NAME.fullmatch(line)]:
        raise InputError(f"{path}: no name of an image in {named(bad)}; expected <patient>_<number>.png in each.")
    return {line: number for number, line in enumerate(lines, 1) if line}


def _names(table: Table) -> list[str]:
    """Names of the images, in small letters; InputError if one is none, or if another column names another patient."""
    names = [cell.lower() for cell in table.cells(INDEX)]
    matches = [NAME.fullmatch(name) for name in names]
    _refuse(table, [match is None for match in matches], f"{INDEX!r} is no name", "<8 digits>_<3 digits>.png")
    if PATIENT in table.columns:
        patients = [_number(cell) for cell in table.cells(PATIENT)]
        other = [match is None or int(match[1]) != patient for match, patient in zip(matches, patients, strict=True)]
        _refuse(table, other, f"{PATIENT!r} is not the patient that {INDEX!r} begins with", "the same number")
    return names


def _findings(table: Table) -> list[dict[str, float]]:
    """Of each row 0 or 1 for every finding and for none."""
    cells = table.cells(FINDING)
    of_cell = {cell: _labels(cell) for cell in set(cells)}
    what = f"{NO_FINDING!r}, or others parted by |: {', '.join(LABELS)}"
    _refuse(table, [of_cell[cell] is None for cell in cells], f"unknown {FINDING!r}", what)
    return [of_cell[cell] or {} for cell in cells]


def _labels(cell: str) -> dict[str, float] | None:
    """The attributes of a cell of findings; None if it is none."""
    labels = [label.strip() for label in cell.split("|")]
    none = labels == [NO_FINDING]
    if not none and (not set(labels) <= set(LABELS) or len(set(labels)) < len(labels)):
        return None
    return {label.lower(): float(label in labels) for label in LABELS} | {"no_finding": float(none)}


def _extent_mm(table: Table, numbers: Numbers, side: str, spacing: str) -> list[float]:
    """Pixels times their size of each row; NaN where either is missing or cannot be."""
    pixels, mm = (numbers.read(column, table.cells(column)) for column in (side, spacing))
    return [
        count * size
        if PLAUSIBLE_PX[0] <= count <= PLAUSIBLE_PX[1] and PLAUSIBLE_MM[0] <= size <= PLAUSIBLE_MM[1]
        else math.nan
        for count, size in zip(pixels, mm, strict=True)
    ]


def _is_inside(box: Box) -> bool:
    """Whether a box is one, give or take a pixel; NaN is none."""
    return (
        box.x >= -1
        and box.y >= -1
        and box.width > 0
        and box.height > 0
        and box.x + box.width <= ORIGINAL + 1
        and box.y + box.height <= ORIGINAL + 1
    )


def _number(cell: str) -> float:
    return float(cell) if re.fullmatch(r"-?\d+\.?\d*", cell, re.ASCII) else math.nan


def _refuse(table: Table, bad: Sequence[bool], what: str, expected: str) -> None:
    """InputError that names the lines of bad rows, if there are any."""
    lines = [line for line, wrong in zip(table.lines, bad, strict=True) if wrong]
    if lines:
        raise InputError(
            f"{table.path}: {what} in {named(lines)}; expected {expected}. Download the table again if it is not yours."
        )


def the_only(paths: Sequence[Path], key: str, root: Path) -> Path | None:
    """The table to read of those that look like it: of several the corrected one, v2020; InputError if none is."""
    chosen = [path for path in paths if "v2020" in path.name.lower()] if len(paths) > 1 else paths
    if len(paths) > 1 and len(chosen) != 1:
        shown = ", ".join(sorted(path.name for path in paths)[:3])
        raise InputError(
            f"data.init_args.{key}: {len(paths)} tables at the top of {root} ({shown}); name the one to read."
        )
    return chosen[0] if chosen else None
