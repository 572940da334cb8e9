"""Any folder of NIfTI, PNG or DICOM images, with or without a table; also cohorts of several sites."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from data_modules.base import Anatomy, MedicalDataModule
from data_modules.listing import is_dicom, is_image, suffix_of
from data_modules.store import Rejected, Scan, partner_of
from lit_medgen.errors import InputError, MissingDataError
from lit_medgen.images.dicom import group_by_series, header_of


class FolderDataModule(MedicalDataModule):
    """Images below `root`; a table (CSV or TSV) gives people and attributes.

    A row belongs to a file if its `key` is the file's path below the root, or what the file's name starts with
    and no letter or digit follows (the longest such key wins). For DICOM, the folder of a series is matched and,
    where it holds several series or radiographs, the first file of each.

    Args:
        root: folder of the images.
        pattern: which files, as a glob below the root.
        table: CSV or TSV file; relative paths are below the root. None: no attributes.
        key: the table's column that names the image.
        person: the table's column that names the person; None: `key`. Without a table, the first folder below the
            root is the person; where there is none, the patient that DICOM names, or the file's name.
        attributes: the table's columns to keep; text columns give the codes of `codes`.
        codes: column -> text -> number, for text columns (default: sex F 0, M 1).
        anatomy: "brain" if images are T1-weighted brains: `evaluate` has scores for those.
    """

    def __init__(
        self,
        root: str,
        pattern: str = "**/*.nii.gz",
        table: str | None = None,
        key: str = "participant_id",
        person: str | None = None,
        attributes: list[str] | None = None,
        codes: dict[str, dict[str, float]] | None = None,
        anatomy: Anatomy = "",
        **common: Any,  # jsonargparse reads the base's signature through this, so a misspelt key is an error
    ) -> None:
        super().__init__(root, **common)
        self.pattern, self.table, self.key, self.person = pattern, table, key, person or key
        self.attributes, self.anatomy = attributes or [], anatomy
        self.codes = codes or {"sex": {"F": 0.0, "M": 1.0}}

    def scans(self) -> tuple[list[Scan], list[Rejected]]:
        """One scan for each file (each DICOM series of a folder)."""
        sources, rejected = self._sources(), self.tree().lost_to(self.pattern)
        if self.table is None:
            return [Scan(source, self._guess_person(paths[-1], source)) for paths, source in sources], rejected
        rows = self._rows()
        scans, seen = [], set()
        for paths, source in sources:
            matches = next(filter(None, ([key for key in rows if self._names(key, path)] for path in paths)), None)
            if not matches:
                reason = f"no row of {self.table} has a {self.key} that names this file"
                rejected.append(Rejected(str(paths[-1]), reason))
                continue
            best = max(matches, key=len)
            seen.add(best)
            scans.append(Scan(source, str(rows[best][self.person]), "", self._values(rows[best])))
        rejected += [Rejected(f"{self.table}: {key}", "a row without an image") for key in rows if key not in seen]
        return scans, rejected

    def listing(self) -> dict[str, Any]:
        """All arguments of its own."""
        names = ("pattern", "table", "key", "person", "attributes", "codes")
        return {name: getattr(self, name) for name in names}

    @property
    def remedy(self) -> str:  # type: ignore[override]
        """The pattern that most of the images there have."""
        found = Counter(suffix_of(path) for path in self.tree().files if is_image(path) or is_dicom(path))
        other = f"; try '**/*{found.most_common(1)[0][0]}'" if found else ""
        return f"Give the folder of the images and the `pattern` of their names, now '{self.pattern}'{other}."

    def _names(self, key: str, path: Path) -> bool:
        return path.relative_to(self.root).as_posix() == key or _begins(path.name, key)

    def _guess_person(self, path: Path, source: Path | list[Path]) -> str:
        """Without a table: the first folder below the root; where there is none, DICOM's patient or the file's name."""
        first, *rest = path.relative_to(self.root).parts
        if rest:
            return first
        header = header_of(path) if isinstance(source, list) and path in source else None
        return str((header and header.get("PatientID")) or _stem(path))

    def _sources(self) -> list[tuple[list[Path], Path | list[Path]]]:
        """Images, each with the paths by which a row of the table may name it.

        For a DICOM series that is its folder; where that holds several, or is the root, also its first file.
        """
        images: dict[Path, None] = {}
        folders: dict[Path, list[Path]] = {}
        for path in self.tree().matching(self.pattern):
            if is_image(path):
                images[path if path.suffix.lower() != ".hdr" else partner_of(path) or path] = None
            elif is_dicom(path):
                folders.setdefault(path.parent, []).append(path)
        sources: list[tuple[list[Path], Path | list[Path]]] = [([image], image) for image in images]
        for folder, files in folders.items():
            series = group_by_series(files)
            for one in series:
                alone = len(series) == 1 and folder != self.root
                sources.append(([folder] if alone else [folder, one[0]], one))
        return sources

    def _rows(self) -> dict[str, dict[str, Any]]:
        path = self.root / str(self.table)
        table = read_table(path)
        for column in [self.key, self.person, *self.attributes]:
            require_column(table, column, path)
        twice = table[self.key][table[self.key].duplicated() & (table[self.key] != "")]
        if len(twice):
            raise InputError(
                f"{path}: {len(twice)} rows repeat a {self.key}, first line {twice.index[0] + 2}; give one each."
            )
        return {str(row[self.key]): row for row in as_rows(table) if row[self.key]}

    def _values(self, row: dict[str, Any]) -> dict[str, float]:
        return {name: number(row[name], self.codes.get(name, {})) for name in self.attributes}


def read_table(path: Path) -> pd.DataFrame:
    """A CSV or TSV file as text; InputError if it is missing or not a table."""
    if not path.is_file():
        raise MissingDataError(f"{path}: no such table; give the path of a CSV or TSV file.")
    try:
        table = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:  # pandas' ParserError and EmptyDataError are ValueErrors
        raise InputError(f"{path}: not a table ({error}); expected CSV or TSV with a header.") from error
    return table.rename(columns=str.strip)


def as_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """One dict for each row."""
    return [dict(zip(map(str, table.columns), row, strict=True)) for row in table.itertuples(index=False)]


def require_column(table: pd.DataFrame, column: str, path: Path) -> None:
    """InputError if the table lacks a column."""
    if column not in table.columns:
        raise InputError(f"{path}: no column {column!r}; it has {', '.join(map(repr, table.columns))}.")


def number(text: Any, codes: dict[str, float]) -> float:
    """A cell as a number: its code, its value, or NaN where it is empty or not a finite number."""
    if text in codes:
        return codes[text]
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) and "_" not in str(text) else math.nan  # Python reads 1_0 as 10


def _begins(name: str, key: str) -> bool:
    """Whether a file name begins with a key that ends there: s1 begins s1_T1.nii but not s12.nii."""
    return name.startswith(key) and not name[len(key) : len(key) + 1].isalnum()


def _stem(path: Path) -> str:
    return path.name[: len(path.name) - len(suffix_of(path))]
