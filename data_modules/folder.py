"""Any folder of NIfTI, MGH, PNG or DICOM images, with or without a table; also cohorts of several sites."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_modules.base import Anatomy, MedicalDataModule
from data_modules.listing import is_dicom, is_image, stem_of, suffix_of
from data_modules.sources import Raw, Rejected, Scan
from data_modules.tables import identifier, is_missing, read_table
from lit_medgen.errors import InputError
from lit_medgen.images import partner_of
from lit_medgen.images.dicom import group_by_series, header_of


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
        text_column: the table's column with the name of each image's text in the file `text`; None: that is the image's
            path below the root, without suffix.
        beside: name -> a text in each image's path below the root, and what stands in its place in the path of what
            belongs to the image: `{label_map: [_flair, _seg]}` (with `preprocessing.classes`), or another image that it
            can be made from (`preprocessing.sources`).
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
        beside: dict[str, tuple[str, str]] | None = None,
        **common: Any,  # jsonargparse reads the base's signature through this, so a misspelt key is an error
    ) -> None:
        super().__init__(root, **common)
        self.pattern, self.table, self.key, self.person = pattern, table, key, person or key
        self.attributes, self.anatomy = attributes or [], anatomy
        self.codes, self.text_column, self.beside = codes or {}, text_column, beside or {}
        if text_column and table is None:
            raise InputError("data.init_args.text_column: a column of no table; add data.init_args.table.")

    def scans(self) -> tuple[list[Scan], list[Rejected]]:
        """One scan for each file (each DICOM series of a folder)."""
        sources, rejected = self._sources(), self.tree().lost_to(self.pattern)
        if self.table is None:
            scans = [Scan(source, self._guess_person(paths[-1], source)) for paths, source in sources]
            return [replace(scan, beside=self._beside(scan.source)) for scan in scans], rejected
        facts, without_key = self._facts()
        scans, seen = [], set()
        for paths, source in sources:
            matches = next(filter(None, ([key for key in facts if self._names(key, path)] for path in paths)), None)
            if not matches:
                reason = f"no row of {self.table} has a {self.key} that names this file"
                rejected.append(Rejected(str(paths[-1]), reason))
                continue
            best = max(matches, key=len)
            seen.add(best)
            person, attributes, text = facts[best]
            scans.append(Scan(source, person, "", attributes, self._beside(source), text))
        rejected += [Rejected(f"{self.table}: {key}", "a row without an image") for key in facts if key not in seen]
        return scans, rejected + without_key

    def listing(self) -> dict[str, Any]:
        """All arguments of its own."""
        names = ("pattern", "table", "key", "person", "attributes", "codes")
        decisive = {name: getattr(self, name) for name in names}
        later = ("text_column", "beside")  # where they are not given, a store has the address that it had without them
        return decisive | {name: value for name in later if (value := getattr(self, name))}

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

    def _beside(self, source: Raw) -> dict[str, Raw]:
        """Name -> the file that belongs to an image, of those that are there."""
        if not isinstance(source, Path):
            return {}
        inside = source.relative_to(self.root).as_posix()
        paths = {name: self.root / inside.replace(*texts) for name, texts in self.beside.items() if texts[0] in inside}
        return {name: path for name, path in paths.items() if path != source and path.is_file()}

    def _guess_person(self, path: Path, source: Path | list[Path]) -> str:
        """Without a table: the first folder below the root; where there is none, DICOM's patient or the file's name."""
        first, *rest = path.relative_to(self.root).parts
        if rest:
            return first
        header = header_of(path) if isinstance(source, list) and path in source else None
        return str((header and header.get("PatientID")) or stem_of(path))

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

    def _facts(self) -> tuple[dict[str, tuple[str, dict[str, float], str | None]], list[Rejected]]:
        """Key -> the person, the attributes and the text's name of a row; and the rows that have no key."""
        table = read_table(self.root / str(self.table))
        texts = [self.text_column] if self.text_column else []
        table.require(self.key, self.person, *self.attributes, *texts)
        columns = [self.unread.read(name, table.cells(name), self.codes.get(name)) for name in self.attributes]
        with_key = [k for k, key in enumerate(table.cells(self.key)) if not is_missing(key)]
        keys = dict(zip(with_key, table.ids(self.key, with_key), strict=True))
        people = dict(zip(with_key, table.ids(self.person, with_key), strict=True))
        firsts = table.one_each(keys, {self.person, *self.attributes, *texts}, self.key)
        names = [("" if is_missing(cell) else cell) for cell in table.cells(texts[0])] if texts else None
        facts = {
            key: (
                people[k],
                {name: column[k] for name, column in zip(self.attributes, columns, strict=True)},
                names[k] if names else None,
            )
            for key, k in firsts.items()
        }
        lost = [line for k, line in enumerate(table.lines) if k not in keys]
        return facts, [Rejected(f"{self.table}: line {line}", f"a row without a {self.key}") for line in lost]
