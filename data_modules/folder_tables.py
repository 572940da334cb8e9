"""What the columns of a user's table say of images: numbers, categories, sets of labels, files, parts of a split."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_modules.listing import stem_of
from data_modules.split_lists import NameList
from data_modules.tables import MISSING, Numbers, Table, identifier, is_missing, named
from lit_medgen.errors import InputError

MAX_NAMES = 50
"""Values of a category, and labels of a set, which checkpoints name: a column of more may be one of ids."""
PART_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("train_val", "trainval"), "train_val"),
}
"""What a column may call the parts of a split, in small letters."""


@dataclass(frozen=True)
class Row:
    """What a table says of an image; see `Scan`."""

    person: str
    attributes: dict[str, float]
    text: str | None
    label_map: str  # path below the root; "" if there is none


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are read, and as what; arguments are those of `FolderDataModule`."""

    key: str
    person: str
    attributes: Sequence[str] = ()
    codes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    categories: Mapping[str, Sequence[str]] = field(default_factory=dict)  # of no values: those seen
    labels: Mapping[str, str] = field(default_factory=dict)  # column -> what stands between labels
    text: str | None = None
    label_map: str | None = None
    split: str | None = None

    @property
    def named(self) -> list[str]:
        """All columns that say something of an image."""
        more = [name for name in (self.text, self.label_map) if name]
        return [self.person, *self.attributes, *self.categories, *self.labels, *more]

    def values_of(self, table: Table, name: str) -> tuple[str, ...]:
        """The values of a category in the order of their codes: as given, or those of all rows, sorted."""
        cells = [_value(cell) for cell in table.cells(name)]
        seen = Counter(cell for cell in cells if cell)
        given = tuple(self.categories[name])
        if unknown := [f"{value!r} ({seen[value]} rows)" for value in seen if given and value not in given]:
            raise InputError(
                f"{table.path}: column {name!r}: values that are none of data.init_args.categories.{name}: "
                f"{', '.join(unknown[:5])}; name them there, or leave the list of values out."
            )
        values = given or tuple(sorted(seen))
        _refuse_many(table, name, len(values), "categories")
        if alike := [value for value, num in Counter(map(str.casefold, values)).items() if num > 1]:
            same = [value for value in values if value.casefold() == alike[0]]
            raise InputError(f"{table.path}: column {name!r} has {' and '.join(map(repr, same))}; write them alike.")
        return values

    def labels_of(self, table: Table, name: str) -> dict[str, str]:
        """Label, as the rows have it -> the attribute that says 1 or 0 of it; sorted."""
        seen = sorted({label for cell in table.cells(name) for label in _labels(cell, self.labels[name]) or ()})
        _refuse_many(table, name, len(seen), "labels")
        return {label: re.sub(r"\W+", "_", label.lower()).strip("_") for label in seen}

    def names_of(self, table: Table) -> dict[str, tuple[str, ...]]:
        """Column of a set of labels -> its attributes, without repetitions."""
        return {name: tuple(dict.fromkeys(self.labels_of(table, name).values())) for name in self.labels}

    def rows(self, table: Table, numbers: Numbers) -> tuple[dict[str, Row], list[int]]:
        """Key -> what its row says; and the lines of rows without a key. InputError if rows contradict each other."""
        table.require(self.key, *self.named)
        attributes = self._attributes(table, numbers)
        with_key, keys = self._ids(table, self.key)
        _, people = self._ids(table, self.person)
        texts, maps = (table.cells(name) if name else None for name in (self.text, self.label_map))
        rows = {
            key: Row(
                people[k],
                {name: column[k] for name, column in attributes.items()},
                None if texts is None else _present(texts[k]),
                "" if maps is None else _present(maps[k]),
            )
            for key, k in table.one_each(keys, set(self.named), self.key).items()
        }
        return rows, [line for k, line in enumerate(table.lines) if k not in set(with_key)]

    def lists(self, table: Table) -> dict[str, NameList]:
        """Part -> its people, by the column `split`; InputError for a cell that names no part."""
        assert self.split is not None
        table.require(self.key, self.person, self.split)
        cells = [_value(cell).lower() for cell in table.cells(self.split)]
        with_key, people = self._ids(table, self.person)
        source = f"data.init_args.split_column {self.split!r} of {table.path}"
        if bad := [table.lines[k] for k in with_key if cells[k] and cells[k] not in PART_OF]:
            raise InputError(f"{source}: {len(bad)} rows ({named(bad)}) name no part; expected train, val or test.")
        lists: dict[str, dict[str, int]] = {}
        for k in with_key:
            if cells[k]:
                lists.setdefault(PART_OF[cells[k]], {}).setdefault(people[k], table.lines[k])
        if not lists:
            raise InputError(f"{source}: all cells are empty; give train, val or test.")
        return {part: NameList(f"{source}, {part}", lines) for part, lines in lists.items()}

    def _ids(self, table: Table, name: str) -> tuple[list[int], dict[int, str]]:
        """Numbers of the rows with a key, and each of these -> its id in a column."""
        with_key = [k for k, key in enumerate(table.cells(self.key)) if not is_missing(key)]
        return with_key, dict(zip(with_key, table.ids(name, with_key), strict=True))

    def _attributes(self, table: Table, numbers: Numbers) -> dict[str, list[float]]:
        """Name of an attribute -> its value in every row; InputError if two would be called the same."""
        found = {name: numbers.read(name, table.cells(name), self.codes.get(name)) for name in self.attributes}
        for name in self.categories:
            codes = {value: float(code) for code, value in enumerate(self.values_of(table, name))}
            _refuse_known(found, name, name)
            found[name] = [codes.get(_value(cell), math.nan) for cell in table.cells(name)]
        for name, separator in self.labels.items():
            attribute_of = self.labels_of(table, name)
            cells = [_labels(cell, separator) for cell in table.cells(name)]
            sets = [None if cell is None else {attribute_of[label] for label in cell} for cell in cells]
            for attribute in dict.fromkeys(attribute_of.values()):
                _refuse_known(found, attribute, name)
                found[attribute] = [math.nan if each is None else float(attribute in each) for each in sets]
        return found


def path_beside(how: str | tuple[str, str], image: Path, root: Path) -> Path:
    """Where the file lies that belongs to an image; the image itself where it has nothing of the sort.

    InputError for a pattern that names what no path has.

    Args:
        how: a pattern of {folder}, {name}, {stem}, {prefix} below the root; or a text in the image's path and another.
        image: path of the image.
        root: folder of the raw data.
    """
    inside = image.relative_to(root)
    if not isinstance(how, str):
        return root / inside.as_posix().replace(*how)
    stem = stem_of(image)
    words = {"folder": inside.parent.as_posix(), "name": image.name, "stem": stem}
    try:
        return root / how.format(**words, prefix=stem.rpartition("_")[0] or stem)
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"data.init_args.beside: {how!r}; give a path below the root with {{folder}}, {{name}}, {{stem}} or "
            "{prefix} of the image, such as '{folder}/{prefix}_seg.nii.gz'."
        ) from error


def _value(cell: str) -> str:
    """A cell of a category, in one form; "" where nothing is known."""
    return "" if is_missing(cell) else identifier(cell)


def _labels(cell: str, separator: str) -> list[str] | None:
    """The labels of a cell; none of "none", and None where nothing is known."""
    text = cell.strip().casefold()
    if text == "none":
        return []
    return None if text in MISSING else [identifier(one) for one in cell.split(separator) if one.strip()]


def _present(cell: str) -> str:
    return "" if is_missing(cell) else cell


def _refuse_many(table: Table, name: str, num: int, what: str) -> None:
    if not 0 < num <= MAX_NAMES:
        raise InputError(
            f"{table.path}: column {name!r} has {num} {what}; give one with 1 to {MAX_NAMES}: checkpoints keep them."
        )


def _refuse_known(found: Mapping[str, object], attribute: str, column: str) -> None:
    if attribute in found:
        raise InputError(
            f"data.init_args: two attributes are called {attribute!r}, one by column {column!r}; drop one."
        )
