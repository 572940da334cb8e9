"""Tables of people and images: read as they come from Excel, R, pandas or LONI, and nothing in them guessed.

Commas, tabs or semicolons; UTF-8 with or without a mark, or Latin-1. What has one meaning is read (sexes in words,
decimal commas, DICOM's ages); any other cell is unknown, and counted by column.
"""

from __future__ import annotations

import csv
import io
import math
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lit_medgen.errors import InputError, MissingDataError, describe

MISSING = {"", "n/a", "na", "nan", "null", "none", "-", "."}
"""What tables write where nothing is known."""
SEX = {"F": 0.0, "M": 1.0}
SEXES = {"f": "f", "female": "f", "m": "m", "male": "m"}
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
DECIMAL_COMMA = re.compile(r"([+-]?\d+),(\d+)")
DICOM_AGE = re.compile(r"(\d{1,3})([DWMY])", re.IGNORECASE)
YEARS = {"d": 1 / 365.25, "w": 7 / 365.25, "m": 1 / 12, "y": 1.0}
AGE = re.compile(r"(patients?)?age(years?|yrs?)?")
NO_YEARS = {"day", "days", "week", "weeks", "month", "months"}
Key = TypeVar("Key", bound=Hashable)
END = "the end of the table"
"""A last row of our own, which a quote without an end swallows."""
MAX_HEADER = 1024**2
"""Bytes of a table's first line."""
MAX_LINES = 5
"""Lines that an error names."""


@dataclass(frozen=True)
class Table:
    """A table with a header, its cells as text without blanks around them."""

    path: Path
    columns: list[str]  # names, as in the header
    rows: list[dict[str, str]]  # column -> cell; rows that are empty are left out
    lines: list[int]  # the line of the file that each row ends on, from 1

    def require(self, *columns: str) -> None:
        """InputError unless the table has each of the columns once."""
        for column in columns:
            if (count := self.columns.count(column)) != 1:
                names = ", ".join(repr(name) for name in self.columns if name)
                raise InputError(f"{self.path}: {count or 'no'} column{'s' * (count > 1)} {column!r}; it has {names}.")

    def cells(self, column: str) -> list[str]:
        """A column; empty cells where there is no such column."""
        return [row.get(column, "") for row in self.rows]

    def ids(self, column: str, rows: Iterable[int] | None = None) -> list[str]:
        """A column of ids, each person's written in one way; those of all rows, or of the given ones alone.

        InputError, which names lines and no id, if one is empty, or if two differ in case, blanks or a .0 alone.
        """
        self.require(column)
        chosen = range(len(self.rows)) if rows is None else list(rows)
        found = [identifier(self.rows[k][column]) for k in chosen]
        if all(re.fullmatch(r"\d+(\.0+)?", text) for text in found):
            found = [text.partition(".")[0] for text in found]  # a program has taken them for numbers: 12.0 is 12
        lines = [self.lines[k] for k in chosen]
        if empty := [line for line, text in zip(lines, found, strict=True) if is_missing(text)]:
            raise InputError(f"{self.path}: {column!r} is empty in {named(empty)}; give every row one.")
        forms: dict[str, dict[str, int]] = {}
        for line, text in zip(lines, found, strict=True):
            forms.setdefault(_folded(text), {}).setdefault(text, line)
        for same in forms.values():
            if len(same) > 1:
                raise InputError(
                    f"{self.path}: {column!r} of {named(list(same.values()))} differ in upper and lower case, blanks "
                    "or a .0 alone; write those of one person alike, and others so that they differ in more."
                )
        return found

    def one_each(self, keys: Mapping[int, Key], columns: Iterable[str], what: str) -> dict[Key, int]:
        """Key -> its row, of row -> key; InputError if two rows with one key differ in any of the columns."""
        first: dict[Key, int] = {}
        for k, key in keys.items():
            first.setdefault(key, k)
        repeating = [
            self.lines[k]
            for k, key in keys.items()
            if any(self.rows[k].get(name) != self.rows[first[key]].get(name) for name in columns)
        ]
        if repeating:
            raise InputError(
                f"{self.path}: {len(repeating)} rows repeat a {what}, first line {repeating[0]}, and say something "
                "else; give one each."
            )
        return first


def columns_of(path: Path) -> list[str]:
    """Names in the first line of a file, as `read_table` would read them; none if it is no table."""
    with path.open("rb") as file:
        head = file.readline(MAX_HEADER)
    try:
        return _trimmed([name.strip() for name in next(_reader(_decoded(path, head), path), [])], 0)
    except (InputError, csv.Error):
        return []


def read_table(path: Path, keep: Callable[[str], bool] | None = None) -> Table:
    """A CSV, TSV or semicolon-separated file; InputError if it is missing or no table.

    Args:
        path: the file.
        keep: whether a column of that name is kept (a table may have thousands); None: all are.
    """
    if not path.is_file():
        raise MissingDataError(f"{path}: no such table; give the path of a CSV or TSV file.")
    text = _decoded(path, path.read_bytes())
    rows, lines = [], []
    try:
        reader = _reader(f"{text}\n{END}", path)
        columns = _trimmed([name.strip() for name in next(reader, [])], 0)
        kept = [(k, name) for k, name in enumerate(columns) if keep is None or keep(name)]
        for line, row in _rows(reader, path):
            cells = _trimmed(row, len(columns))
            if len(cells) > max(len(columns), 1):
                raise InputError(
                    f"{path}: not a table (line {line} has {len(cells)} cells, the header {len(columns)} names); "
                    "expected a name for every column, and text that holds the separator in quotes."
                )
            if any(cells):
                rows.append({name: cells[k] if k < len(cells) else "" for k, name in kept})
                lines.append(line)
    except csv.Error as error:
        raise InputError(f"{path}: not a table ({describe(error)}); expected CSV or TSV with a header.") from error
    if not columns:
        raise InputError(f"{path}: not a table (no header); expected CSV or TSV with a header.")
    return Table(path, [name for _, name in kept], rows, lines)


def _reader(text: str, path: Path) -> Iterator[list[str]]:
    """Reads the rows of a text, by the separator that gives its header the most names."""
    separator = max(("\t", ",", ";") if path.suffix == ".tsv" else (",", "\t", ";"), key=lambda s: _width(text, s))
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)


def _rows(reader: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    """The line that each row ends on, and its cells; all but the last row, which must be `END`."""
    before: tuple[int, list[str]] = (0, [])
    for row in reader:
        if before[0]:
            yield before
        before = reader.line_num, [cell.strip() for cell in row]
    if before[1] != [END]:
        raise InputError(f"{path}: not a table (no header, or a quote without its end); expected CSV or TSV.")


def identifier(text: str) -> str:
    """An id in the one form that it is compared in: blanks and the two ways to write an accent make no other person."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


def _folded(text: str) -> str:
    """What two ids share that may be one person's: 1.0 is 1 also where other ids are no numbers."""
    return re.sub(r"^(\d+)\.0+$", r"\1", text.casefold().replace(" ", ""))


def is_missing(text: str) -> bool:
    """Whether a cell says that nothing is known."""
    return text.strip().casefold() in MISSING


class Numbers:
    """Reads columns as numbers; counts the cells that are none, by column."""

    def __init__(self) -> None:
        self._unread: dict[str, tuple[list[str], int]] = {}

    def read(
        self, column: str, cells: Sequence[str], codes: Mapping[str, float] | None = None, coded: bool = False
    ) -> list[float]:
        """A number for each cell, NaN where none is known.

        Args:
            column: its name, which says whether these are ages.
            cells: of the whole column, since one cell may tell how the others are meant.
            codes: text -> number, whatever the case of the text. Codes of F and M also hold for the words; None: those
                of `SEX` if the column is called so.
            coded: numbers are codes too, so they count only if all of them are among the codes. It is so of sexes:
                1 and 2 may mean anything.
        """
        codes = codes or (SEX if is_sex(column) else {})
        meanings = {text.strip().casefold(): value for text, value in codes.items()}
        if sexes := bool(meanings) and meanings.keys() <= SEXES.keys():
            of_sex = {SEXES[text]: value for text, value in meanings.items()}
            meanings = {word: of_sex[sex] for word, sex in SEXES.items() if sex in of_sex}
        exact = {_plain(text): value for text, value in codes.items()}
        commas, years = _decimal_commas(cells), _is_age(column)
        values = [_number(cell.strip(), commas, years) for cell in cells]
        of_text = [exact.get(text, meanings.get(text.casefold())) for text in map(_plain, cells)]
        if coded or sexes:
            plain = {value for value, text in zip(values, of_text, strict=True) if text is None and value is not None}
            if not plain <= set(meanings.values()):
                values = [None] * len(values)
        found = [value if text is None else text for value, text in zip(values, of_text, strict=True)]
        unread = [cell for cell, value in zip(cells, found, strict=True) if value is None and not is_missing(cell)]
        before, total = self._unread.get(column, ([], 0))
        self._unread[column] = ([*before, *unread], total + len(cells))
        return [math.nan if value is None else value for value in found]

    def lines(self, owner: bool) -> list[str]:
        """A line for each column with cells that are no numbers; `owner` shows one, which may be too much for a log."""
        return [
            f"column {column!r}: {len(unread)} of {total} cells are "
            + ("codes of unknown meaning" if NUMBER.fullmatch(unread[0].strip()) else "no numbers")
            + ", so they are unknown"
            + (f", e.g. {unread[0][:40]!r}" if owner else "")
            for column, (unread, total) in self._unread.items()
            if unread
        ]


def named(lines: Sequence[int]) -> str:
    """Lines of a table in words, the first few by number."""
    more = f" and {len(lines) - MAX_LINES} more" if len(lines) > MAX_LINES else ""
    return f"line{'s' * (len(lines) > 1)} {', '.join(map(str, lines[:MAX_LINES]))}{more}"


def _decoded(path: Path, content: bytes) -> str:
    encodings = ("utf-16",) if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "latin-1")
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    raise InputError(f"{path}: not a table (it is no text); expected CSV or TSV with a header.")


def _width(text: str, separator: str) -> int:
    """How many names a header has with this separator."""
    return len(next(csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True), []))


def _trimmed(cells: list[str], least: int) -> list[str]:
    """Without the empty cells that a separator at the end of a line makes, but at least so many."""
    num = len(cells)
    while num > least and not cells[num - 1]:
        num -= 1
    return cells[:num]


def _plain(cell: str) -> str:
    """A cell as codes name it: 1.0 is 1."""
    text = cell.strip()
    return text.partition(".")[0] if re.fullmatch(r"\d+\.0+", text) else text


def _is_age(column: str) -> bool:
    """Whether a name says that a column holds ages in years: age, Patient Age, AgeAtScan, age_years."""
    return any(map(AGE.fullmatch, _words(column))) and NO_YEARS.isdisjoint(_words(column))


def is_sex(column: str) -> bool:
    """Whether a name says that a column holds sexes: sex, Patient Gender."""
    return not {"sex", "gender"}.isdisjoint(_words(column))


def _words(column: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", column)]


def _decimal_commas(cells: Sequence[str]) -> bool:
    """Whether 1,234 is a little more than one: some cell can be meant in no other way, and none has a point."""
    matches = [match for cell in cells if (match := DECIMAL_COMMA.fullmatch(cell.strip()))]
    return any(map(_decides, matches)) and not any("." in cell and NUMBER.fullmatch(cell.strip()) for cell in cells)


def _decides(match: re.Match[str]) -> bool:
    """Whether a comma cannot part thousands."""
    whole = match[1].lstrip("+-")
    return len(match[2]) != 3 or len(whole) > 3 or whole.startswith("0")


def _number(text: str, commas: bool, years: bool) -> float | None:
    if NUMBER.fullmatch(text):
        value = float(text)
        return value if math.isfinite(value) else None
    if (match := DECIMAL_COMMA.fullmatch(text)) and (commas or _decides(match)):
        return float(f"{match[1]}.{match[2]}")
    if years and (match := DICOM_AGE.fullmatch(text)):
        return int(match[1]) * YEARS[match[2].lower()]
    return None
