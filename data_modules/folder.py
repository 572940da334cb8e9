"""Any folder of NIfTI, MGH, PNG or DICOM images, with or without a table; also cohorts of several sites."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_modules.base import Anatomy, MedicalDataModule
from data_modules.folder_tables import Columns, Row, path_beside
from data_modules.listing import is_dicom, is_image, stem_of, suffix_of
from data_modules.sources import LABEL_MAP, Raw, Rejected, Scan
from data_modules.split_lists import NameList
from data_modules.tables import SEX, identifier, is_sex, read_table
from lit_medgen.batch import DataSpec
from lit_medgen.errors import InputError
from lit_medgen.images import partner_of
from lit_medgen.images.dicom import group_by_series, header_of

Paths = tuple[list[Path], Path | list[Path]]
"""The paths by which a row of the table may name an image, and its file or series."""
OF_TABLES = ("text_column", "split_column", "label_map_column")
"""Arguments that name a column of the table."""


class FolderDataModule(MedicalDataModule):
    """Images below `root`; a table (CSV or TSV) gives people and attributes.

    A row belongs to a file if its `key` is the file's path below the root, or what the file's name starts with
    and no letter or digit follows (the longest such key wins). For DICOM, the folder of a series is matched and,
    where it holds several series or radiographs, the first file of each.

    Args:
        root: folder of the images.
        pattern: which files, as a glob below the root; links are followed, and capitals of a suffix count as small.
        table: CSV, TSV or semicolon-separated file; relative paths are below the root. None: no attributes.
        key: the table's column that names the image.
        person: the table's column that names the person; None: `key`. Without a table, the first folder below the
            root is the person; where there is none, the patient that DICOM names, or the file's name.
        attributes: the table's columns to keep; text columns give the codes of `codes`.
        codes: column -> text -> number, for text columns, upper and lower case alike. Columns called sex or gender have
            F 0, M 1, also in words, unless codes are given for them.
        categories: columns whose values are categories, e.g. [scanner]: codes 0, 1, ... of the values of all rows,
            sorted, whose names are kept with a model; or column -> values, in an order of your own.
        labels: columns with several labels a cell -> what stands between them, e.g. {findings: "|"}. Each label of any
            row becomes an attribute of its name, in small letters, 1 or 0; an empty cell is unknown, "none" is none.
        split_column: column of the part that each person belongs to: train, val or test, or nothing.
        beside: name -> path below the root of what belongs to each image, which then is no image itself: `label_map`
            (with `classes`), or another image that it can be made from (`preprocessing.sources`). The path holds
            {folder}, {name}, {stem} or {prefix} (the stem up to its last _) of the image, as in
            "{folder}/{prefix}_seg.nii.gz"; or it is the image's with one text in place of another, [_flair, _seg].
        label_map_column: or the table's column with the path of the label map.
        classes: name of a class -> its value in the label maps, the background first, e.g. {background: 0, lesion: 3};
            other values are refused.
        text_column: the table's column with the name of each image's text in the file `text`; None: that is the image's
            path below the root, without suffix.
        anatomy: "brain" if images are T1-weighted brains: `evaluate` has scores for those.
    """

    ids_are_unique = False  # sub-01 of one folder is another person than sub-01 of the next

    def __init__(
        self,
        root: str,
        pattern: str = "**/*.nii.gz",
        table: str | None = None,
        key: str = "participant_id",
        person: str | None = None,
        attributes: list[str] | None = None,
        codes: dict[str, dict[str, float]] | None = None,
        text_column: str | None = None,
        anatomy: Anatomy = "",
        categories: list[str] | dict[str, list[str]] | None = None,
        labels: dict[str, str] | None = None,
        split_column: str | None = None,
        beside: dict[str, str | tuple[str, str]] | None = None,
        label_map_column: str | None = None,
        classes: dict[str, int] | None = None,
        **common: Any,  # jsonargparse reads the base's signature through this, so a misspelt key is an error
    ) -> None:
        super().__init__(root, **common)
        self.pattern, self.table, self.key, self.person = pattern, table, key, person or key
        self.attributes, self.anatomy = attributes or [], anatomy
        self.codes, self.text_column = codes or {}, text_column
        self.categories: dict[str, list[str]] = (
            categories if isinstance(categories, dict) else {name: [] for name in categories or []}
        )
        self.labels, self.split_column = labels or {}, split_column
        self.beside, self.label_map_column = beside or {}, label_map_column
        self._take_classes(classes)
        for name in (*OF_TABLES, "labels", "categories"):
            if getattr(self, name) and table is None:
                raise InputError(f"data.init_args.{name}: a column of no table; add data.init_args.table.")
        if split_column and (self.fold is not None or self.split_files is not None):
            other = "fold" if self.fold is not None else "split_files"
            raise InputError(f"data.init_args.split_column and {other} exclude each other; leave one out.")

    def _take_classes(self, classes: dict[str, int] | None) -> None:
        """Has the recipe read label maps; InputError if what is needed is not given, or given twice."""
        if LABEL_MAP in self.beside and self.label_map_column:
            raise InputError("data.init_args.beside.label_map and label_map_column exclude each other; leave one out.")
        if classes and self.preprocessing.classes:
            raise InputError("data.init_args.classes and preprocessing.classes exclude each other; leave one out.")
        if classes:
            names, values = tuple(classes), tuple(classes.values())
            self.preprocessing = replace(self.preprocessing, classes=names, class_values=values)
        if (LABEL_MAP in self.beside or self.label_map_column) and not self.preprocessing.classes:
            raise InputError(
                "data.init_args.classes: label maps need the names and values of their classes; give them, such as "
                "{background: 0, lesion: 1}."
            )

    def scans(self) -> tuple[list[Scan], list[Rejected]]:
        """One scan for each file (each DICOM series of a folder)."""
        table = None if self.table is None else read_table(self.root / self.table)
        rows, without_key = self._columns.rows(table, self.unread) if table else ({}, [])
        sources, rejected = self._images(rows), self.tree().lost_to(self.pattern)
        if self.table is None:
            return [
                Scan(source, self._guess_person(paths[-1], source), beside=self._beside(paths[0]))
                for paths, source in sources
            ], rejected
        scans, seen = [], set()
        for paths, source in sources:
            matches = next(filter(None, ([key for key in rows if self._names(key, path)] for path in paths)), None)
            if not matches:
                reason = f"no row of {self.table} has a {self.key} that names this file"
                rejected.append(Rejected(str(paths[-1]), reason))
                continue
            best = max(matches, key=len)
            seen.add(best)
            row = rows[best]
            scans.append(Scan(source, row.person, "", row.attributes, self._beside(paths[0], row), row.text))
        rejected += [Rejected(f"{self.table}: {key}", "a row without an image") for key in rows if key not in seen]
        lost = [Rejected(f"{self.table}: line {line}", f"a row without a {self.key}") for line in without_key]
        return scans, rejected + lost

    @property
    def _columns(self) -> Columns:
        """The columns of the table that are read."""
        columns = (self.text_column, self.label_map_column, self.split_column)
        return Columns(self.key, self.person, self.attributes, self.codes, self.categories, self.labels, *columns)

    def split_lists(self) -> dict[str, NameList]:
        """The people of each part by the table's column `split_column`, or those of `split_files`."""
        if not self.split_column:
            return super().split_lists()
        return self._columns.lists(read_table(self.root / str(self.table)))

    def category_names(self) -> dict[str, tuple[str, ...]]:
        """The values of the categories of the table, and the sexes, in the order of their codes."""
        sexes = {name: tuple(SEX) for name in self.attributes if is_sex(name) and name not in self.codes}
        if not self.categories:
            return sexes
        table = read_table(self.root / str(self.table))
        return sexes | {name: self._columns.values_of(table, name) for name in self.categories}

    def make_spec(self) -> DataSpec:
        """Categories and labels have the range of all rows, whatever the training people show of it."""
        spec = super().make_spec()
        names = {name: values for name, values in spec.category_names.items() if name in self.categories}
        ranges = {name: (0.0, len(values) - 1.0) for name, values in names.items()}
        if self.labels:
            labels = self._columns.names_of(read_table(self.root / str(self.table)))
            ranges |= {name: (0.0, 1.0) for each in labels.values() for name in each if name in spec.attributes}
        binary = [name for name, (_, high) in ranges.items() if high == 1]
        codes = (*(name for name in spec.codes if name not in ranges), *binary)
        return replace(spec, attributes=spec.attributes | ranges, codes=codes)

    def _beside(self, image: Path, row: Row | None = None) -> dict[str, Raw]:
        """Name -> the file that belongs to an image, of those that are there, and what its row names."""
        paths = {name: path_beside(how, image, self.root) for name, how in self.beside.items()}
        found: dict[str, Raw] = {name: path for name, path in paths.items() if path != image and path in self._files}
        return found | ({LABEL_MAP: self.root / row.label_map} if row and row.label_map else {})

    def _images(self, rows: Mapping[str, Row]) -> list[Paths]:
        """The sources that do not belong to other images."""
        sources, self._files = self._sources(), frozenset(self.tree().files)
        if not (self.beside or self.label_map_column):
            return sources
        theirs = {path for paths, _ in sources for path in self._beside(paths[0]).values()}
        theirs |= {self.root / row.label_map for row in rows.values() if row.label_map}
        return [(paths, source) for paths, source in sources if theirs.isdisjoint(paths)]

    def listing(self) -> dict[str, Any]:
        """All arguments of its own."""
        names = ("pattern", "table", "key", "person", "attributes", "codes")
        later = ("text_column", "beside", "categories", "labels", "label_map_column")
        given = {name: value for name in later if (value := getattr(self, name))}  # so that older stores stay valid
        return {name: getattr(self, name) for name in names} | given

    @property
    def remedy(self) -> str:  # type: ignore[override]
        """The pattern that most of the images there have."""
        found = Counter(suffix_of(path) for path in self.tree().files if is_image(path) or is_dicom(path))
        other = f"; try '**/*{found.most_common(1)[0][0]}'" if found else ""
        return f"Give the folder of the images and the `pattern` of their names, now '{self.pattern}'{other}."

    def _names(self, key: str, path: Path) -> bool:
        """Whether a key is the file's path, or begins its name and ends there: s1 begins s1_T1.nii but not s12.nii."""
        whole, name = identifier(path.relative_to(self.root).as_posix()), identifier(path.name)
        return whole == key or (name.startswith(key) and not name[len(key) : len(key) + 1].isalnum())

    def _guess_person(self, path: Path, source: Path | list[Path]) -> str:
        """Without a table: the first folder below the root; where there is none, DICOM's patient or the file's name."""
        first, *rest = path.relative_to(self.root).parts
        if rest:
            return first
        header = header_of(path) if isinstance(source, list) and path in source else None
        return str((header and header.get("PatientID")) or stem_of(path))

    def _sources(self) -> list[Paths]:
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
        sources: list[Paths] = [([image], image) for image in images]
        for folder, files in folders.items():
            series = group_by_series(files)
            for one in series:
                alone = len(series) == 1 and folder != self.root
                sources.append(([folder] if alone else [folder, one[0]], one))
        return sources
