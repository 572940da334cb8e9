"""UK Biobank's tables: one row for each person, a column for each field, visit (instance) and value (array).

    ukbconv, CSV   eid, 31-0.0, 21003-2.0        field-instance.array
    R              f.eid, f.31.0.0, f.21003.2.0
    RAP            eid, p31, p21003_i2, also participant.p21003_i2; without an instance where a field has one alone

Volumes are normalised for head size in fields of odd numbers, and as measured in the even ones that follow. Field
25781, which some take for the ventricles, is the volume of white matter hyperintensities.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from data_modules.tables import SEX, Numbers, Table, columns_of, is_missing, named, read_table
from data_modules.withdrawals import number_of
from lit_medgen.errors import InputError

Volumes = Literal["normalised", "measured"]
SEX_FIELD, AGE_FIELD = 31, 21003
VOLUME_FIELDS: dict[str, dict[Volumes, int]] = {
    "ventricles_ml": {"normalised": 25003, "measured": 25004},
    "brain_ml": {"normalised": 25009, "measured": 25010},
}
MM3_PER_ML = 1000
PLAUSIBLE = {AGE_FIELD: (0.0, 120.0)} | {
    number: (0.0, 1e7) for each in VOLUME_FIELDS.values() for number in each.values()
}
"""Field -> what its values lie between, years and mm3; others are unknown."""
NAMES = (
    re.compile(r"(?P<field>\d+)-(?P<instance>\d+)\.(?P<array>\d+)"),
    re.compile(r"f\.(?P<field>\d+)\.(?P<instance>\d+)\.(?P<array>\d+)"),
    re.compile(r"(?:participant\.)?p(?P<field>\d+)(?:_i(?P<instance>\d+))?(?:_a(?P<array>\d+))?"),
)
PERSON = re.compile(r"(?:f\.|participant\.|n_)?eid", re.IGNORECASE)
SUFFIXES = (".csv", ".tsv", ".tab", ".txt")
DEPTH = 2
"""Parts of a table's path below the root, at most."""


class Column(NamedTuple):
    """What a column holds."""

    field: int
    instance: int
    array: int


@dataclass
class People:
    """What a table knows of people.

    Attributes:
        path: of the table; None if there is none.
        rows: person -> row.
        values: attribute -> instance -> the value of each row; instance "" holds at every visit.
        lines: what to say of it.
    """

    path: Path | None = None
    rows: dict[str, int] = field(default_factory=dict)
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def of(self, person: str, instance: str) -> dict[str, float]:
        """Attributes of a person at a visit, NaN where unknown."""
        found = {}
        for name, columns in self.values.items():
            column = columns.get("") or columns.get(instance)
            found[name] = column[self.rows[person]] if column else math.nan
        return found


def parsed(name: str) -> Column | None:
    """What a column holds by its name, in any of the three schemes; None for another name."""
    match = next(filter(None, (pattern.fullmatch(name) for pattern in NAMES)), None)
    return Column(*(int(match[part] or 0) for part in ("field", "instance", "array"))) if match else None


def of_people(
    root: Path,
    table: str | None,
    files: Iterable[Path],
    volumes: Volumes,
    numbers: Numbers,
    left_out: Collection[str] = (),
) -> People:
    """What the table says of people; InputError if it has no ids, or if none is named and several could be meant.

    Args:
        root: of the data.
        table: its path, also below the root; None: the only one of `files` at the top that looks like one.
        files: those below the root.
        volumes: which fields.
        numbers: reads the cells, and counts those that are no numbers.
        left_out: people whose rows are not looked at.
    """
    wanted = {SEX_FIELD, AGE_FIELD, *(each[volumes] for each in VOLUME_FIELDS.values())}
    path = _found(root, files, wanted) if table is None else Path(table) if Path(table).is_file() else root / table
    if path is None:
        return People(
            lines=["no table with a column of ids (eid) at the top of the root: nothing is known of the people"]
        )
    read = read_table(path, keep=lambda name: PERSON.fullmatch(name) is not None or _field(name) in wanted)
    ids = [name for name in read.columns if PERSON.fullmatch(name)]
    if len(ids) != 1:
        raise InputError(f"{path}: {len(ids) or 'no'} column{'s' * (len(ids) > 1)} of ids; expected one, eid or f.eid.")
    people = [0 if is_missing(cell) else number_of(cell) for cell in read.cells(ids[0])]
    if bad := [line for line, person in zip(read.lines, people, strict=True) if person is None]:
        raise InputError(f"{path}: {ids[0]!r} is no number in {named(bad)}; expected the ids of people.")
    there = {k: str(person) for k, person in enumerate(people) if person and person > 0}
    chosen = {k: person for k, person in there.items() if person not in left_out}
    rows = Table(path, read.columns, [read.rows[k] for k in chosen], [read.lines[k] for k in chosen])
    firsts = rows.one_each(dict(enumerate(chosen.values())), read.columns, ids[0])
    known = People(path, firsts)
    known.values = _values(rows, volumes, numbers, known.lines)
    if passed := len(people) - len(there):
        known.lines.append(f"{path.name}: {passed} rows are of people without an id (redacted, 0 or less): passed over")
    if lacking := [name for name, columns in known.values.items() if not columns]:
        known.lines.append(f"{path.name}: no column of {', '.join(lacking)}, so they are unknown")
    return known


def _field(name: str) -> int | None:
    column = parsed(name)
    return column.field if column else None


def _found(root: Path, files: Iterable[Path], wanted: set[int]) -> Path | None:
    candidates = []
    for path in files:
        if path.suffix.lower() in SUFFIXES and len(path.relative_to(root).parts) <= DEPTH:
            names = columns_of(path)
            if any(map(PERSON.fullmatch, names)) and any(_field(name) in wanted for name in names):
                candidates.append(path)
    if len(candidates) > 1:
        raise InputError(
            f"data.init_args.table: {len(candidates)} tables at the top of {root} have a column of ids and one of the "
            f"fields read ({', '.join(path.name for path in candidates[:3])}); name the one to read."
        )
    return candidates[0] if candidates else None


def _values(table: Table, volumes: Volumes, numbers: Numbers, lines: list[str]) -> dict[str, dict[str, list[float]]]:
    """Attribute -> instance -> the value of each row; adds to `lines` what is to be said of values that cannot be."""
    columns = {column: name for name in table.columns if (column := parsed(name)) and column.array == 0}

    def read(number: int, codes: Mapping[str, float] | None = None) -> dict[str, list[float]]:
        of_field = {str(column.instance): name for column, name in columns.items() if column.field == number}
        bounds = PLAUSIBLE.get(number)
        return {
            instance: _read(table, name, numbers, codes, bounds, lines) for instance, name in sorted(of_field.items())
        }

    sexes = read(SEX_FIELD, SEX)
    values = {"sex": {"": sexes[min(sexes)]} if sexes else {}, "age_years": read(AGE_FIELD)}
    for name, fields in VOLUME_FIELDS.items():
        values[name] = {
            instance: [value / MM3_PER_ML for value in column] for instance, column in read(fields[volumes]).items()
        }
    return values


def _read(
    table: Table,
    column: str,
    numbers: Numbers,
    codes: Mapping[str, float] | None,
    bounds: tuple[float, float] | None,
    lines: list[str],
) -> list[float]:
    """Numbers of a column; negative ones are codes (-1 do not know, -3 prefer not to answer), and are unknown."""
    cells = ["" if cell.startswith("-") else cell for cell in table.cells(column)]
    found: Sequence[float] = numbers.read(column, cells, codes, coded=codes is not None)
    low, high = bounds or (-math.inf, math.inf)
    if impossible := sum(not low < value <= high for value in found if not math.isnan(value)):
        lines.append(
            f"{table.path.name}: {impossible} values of {column} are not above {low:g} and at most {high:g}, so they "
            "are unknown"
        )
    return [value if low < value <= high else math.nan for value in found]
