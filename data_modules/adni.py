"""ADNI: the LONI download with its collection CSV, or the BIDS tree that clinica makes of it.

    LONI  <root>/[ADNI/]<PTID>/<Description>/<YYYY-MM-DD_HH_MM_SS.0>/<I... or S...>/<.nii or .dcm files>
          and a CSV with "Image Data ID", "Subject", "Sex", "Age", ... somewhere at the top
    BIDS  <root>/sub-*/ses-*/anat/*_T1w.nii.gz with participants.tsv and sub-*/*_sessions.tsv

ADNI needs an application to LONI (ida.loni.usc.edu); images must not be passed on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from data_modules.base import MedicalDataModule
from data_modules.listing import READ, count_suffixes, is_dicom, is_image
from data_modules.sources import Rejected, Scan
from data_modules.tables import SEX, Table, read_table
from lit_medgen.errors import InputError
from lit_medgen.images.dicom import group_by_series

PTID = re.compile(r"\d{3}_S_\d{4,5}")
T1_DESCRIPTIONS = ("MPR*Scaled*", "MPR*N3*", "MPR*", "MT1*N3*", "MT1*", "*MPRAGE*", "*MP_RAGE*", "*SPGR*")
MAX_NAMES = 12
"""Series that a rejection names."""
CHOOSE = "name what to take in data.init_args.descriptions"
DIAGNOSIS = (
    dict.fromkeys(("CN", "SMC"), 0.0)
    | dict.fromkeys(("EMCI", "MCI", "LMCI"), 1.0)
    | dict.fromkeys(("AD", "Dementia"), 2.0)
)

DIAGNOSES = ("CN", "MCI", "Dementia")
"""Names of the values of diagnosis."""


class ADNIDataModule(MedicalDataModule):
    """T1-weighted brains of ADNI, one for each person and visit.

    Attributes of every scan: age_years, sex (0 female, 1 male), diagnosis (0 cognitively normal, 1 mild cognitive
    impairment, 2 dementia); NaN where unknown.

    Args:
        root: the downloaded folder.
        table: the collection CSV of a LONI download; None: the CSV at the top of `root` that has the columns.
        descriptions: series that are taken, as shell patterns, best first; where a visit has several, the best is
            taken. None: the usual names of T1-weighted series. Upper and lower case are alike, and so are blanks and
            punctuation, which folder names have as `_`.
    """

    anatomy = "brain"
    remedy = (
        "ADNI needs an application at ida.loni.usc.edu; expected <PTID>/<Description>/<date>/<I...>/*.nii and the "
        "collection CSV. To try the method without it, draw phantoms (`python -m lit_medgen phantom adni "
        "--out demo/phantoms --num_subjects 96`) and add the method's overlay of configs/demo, for cDPM "
        "--config configs/demo/cdpm.yaml."
    )

    def __init__(
        self,
        root: str,
        table: str | None = None,
        descriptions: list[str] | None = None,
        **common: Any,  # jsonargparse reads the base's signature through this, so a misspelt key is an error
    ) -> None:
        super().__init__(root, **common)
        self.table = table
        self.descriptions = tuple(descriptions or T1_DESCRIPTIONS)

    def scans(self) -> tuple[list[Scan], list[Rejected]]:
        """One scan for each person and visit, and the people of the table who have none."""
        scans, rejected = self._bids() if any(self.root.glob("sub-*")) else self._loni()
        return scans, self.tree().lost + rejected

    def listing(self) -> dict[str, Any]:
        """All arguments of its own."""
        return {"table": self.table, "descriptions": self.descriptions}

    # The LONI layout.

    def _loni(self) -> tuple[list[Scan], list[Rejected]]:
        folders = self.tree().folders
        people = {path for path in folders if PTID.fullmatch(path.name) and len(path.relative_to(self.root).parts) < 3}
        if not people:
            return [], []
        table = self._collection()
        path, facts = table.path, self._attributes(table, ("Age",), ("Sex",), ("Group",))
        # Series (S...) and images (I...) are numbered apart, so the letter may not be dropped from a folder's S.
        subjects, numbers = table.ids("Subject"), [image.removeprefix("I") for image in table.ids("Image Data ID")]
        keys = dict(enumerate(zip(subjects, numbers, strict=True)))
        by_image = table.one_each(keys, ("Age", "Sex", "Group"), "Image Data ID")
        by_visit: dict[tuple[str, str], list[int]] = {}
        for k, visit in enumerate(zip(subjects, map(_date, table.cells("Acq Date")), strict=True)):
            by_visit.setdefault(visit, []).append(k)
        best: dict[tuple[str, str], tuple[int, Scan]] = {}
        others: dict[str, set[str]] = {}
        rejected = []
        for folder in (folder for folder in folders if people.intersection([*folder.parents][2:3])):
            person, description, date = folder.parts[-4:-1]
            rank = next((k for k, pattern in enumerate(self.descriptions) if _matches(description, pattern)), None)
            if rank is None:
                others.setdefault(person, set()).add(description)  # a localizer, diffusion, ...
                continue
            row = by_image.get((person, folder.name.removeprefix("I")))
            of_visit = by_visit.get((person, date[:10]), [])
            row = _agreed(of_visit, facts) if row is None else row
            images = self._images(folder)
            if row is None or not images:
                there = count_suffixes(self.tree().of_folder.get(folder, []))
                reason = (
                    f"the rows of {path.name} for this visit disagree"
                    if row is None and of_visit
                    else f"no row of {path.name} for this image"
                    if row is None
                    else "no .nii or .dcm file in this folder" + (f" ({there}; read are {READ})" if there else "")
                )
                rejected.append(Rejected(str(folder), reason))
                continue
            rejected += [Rejected(str(folder), "a second series in the folder of an image") for _ in images[1:]]
            scan = Scan(images[0], person, date[:10], facts[row])
            if (person, date[:10]) not in best or rank < best[person, date[:10]][0]:
                best[person, date[:10]] = (rank, scan)
        found = {person for person, _ in best}
        known = dict.fromkeys([*subjects, *sorted(others)])
        rejected += [
            Rejected(f"{path}: {person}", f"a subject without an image{_instead(others.get(person, ()), CHOOSE)}")
            for person in known
            if person not in found
        ]
        return [scan for _, scan in best.values()], rejected

    def _images(self, folder: Path) -> list[Path] | list[list[Path]]:
        """The file of an image's folder that is a volume, or else its DICOM series, that of most files first."""
        files = self.tree().of_folder.get(folder, [])
        if volumes := [path for path in files if is_image(path) and path.suffix.lower() != ".png"]:
            return volumes[:1]
        return sorted(group_by_series([path for path in files if is_dicom(path)]), key=len, reverse=True)

    def _collection(self) -> Table:
        needed = ("Image Data ID", "Subject", "Sex", "Age")
        if self.table is None:
            candidates = sorted([*self.root.glob("*.csv"), *self.root.glob("*/*.csv")])
            fitting = [table for table in map(read_table, candidates) if set(needed[:2]) <= set(table.columns)]
            if len(fitting) != 1:
                raise InputError(
                    f"data.init_args.table: {len(fitting)} CSV files at the top of {self.root} have the columns "
                    f"{needed[0]!r} and {needed[1]!r}; give the path of the collection CSV."
                )
            table = fitting[0]
        else:
            path = Path(self.table) if Path(self.table).is_file() else self.root / self.table
            table = read_table(path)
        table.require(*needed)
        return table

    def category_names(self) -> dict[str, tuple[str, ...]]:
        """Name of an attribute that is a category -> the names of its values 0, 1, ..."""
        return {"sex": tuple(SEX), "diagnosis": DIAGNOSES}

    def _attributes(self, table: Table, *columns: Sequence[str]) -> list[dict[str, float]]:
        """Age, sex and diagnosis of every row; of several columns for one of them the first that knows it."""
        codes = {"age_years": None, "sex": SEX, "diagnosis": DIAGNOSIS}
        read = {
            name: [
                self.unread.read(column, table.cells(column), codes[name], coded=name == "diagnosis")
                for column in some
                if column in table.columns
            ]
            for name, some in zip(codes, columns, strict=True)
        }
        return [
            {
                name: next((column[k] for column in some if column[k] == column[k]), math.nan)
                for name, some in read.items()
            }
            for k in range(len(table.rows))
        ]

    # The BIDS layout.

    def _bids(self) -> tuple[list[Scan], list[Rejected]]:
        table = read_table(path := self.root / "participants.tsv")
        people = table.ids("participant_id")
        columns = (("age", "age_bl"), ("sex",), ("diagnosis", "diagnosis_bl"))
        facts = self._attributes(table, *columns)
        rows = table.one_each(dict(enumerate(people)), {name for some in columns for name in some}, "participant_id")
        heads: dict[str, list[Path]] = {}
        for image in self.tree().matching("sub-*/**/anat/*_T1w.nii*"):
            if is_image(image):
                heads.setdefault(image.relative_to(self.root).parts[0], []).append(image)
        scans, rejected = [], []
        for person, row in rows.items():
            visits: dict[str, Path] = {}
            for image in heads.get(person, []):
                visits.setdefault(image.parent.parent.name, image)  # the first run of a session
            if not visits:
                there = self.tree().matching(f"{person}/**/anat/*")
                others = {"_".join(image.name.split("_")[1:]) for image in there if is_image(image)}
                rejected.append(
                    Rejected(f"{path}: {person}", f"a subject without an image{_instead(others, 'taken are T1w')}")
                )
            sessions = self._sessions(person, columns)
            for session, image in visits.items():
                later = {name: value for name, value in sessions.get(session, {}).items() if value == value}
                scans.append(Scan(image, person, session, facts[row] | later))
        rejected += [
            Rejected(str(image), f"no row of {path.name} for this image")
            for person in sorted(heads.keys() - rows.keys())
            for image in heads[person]
        ]
        return scans, rejected

    def _sessions(self, person: str, columns: Sequence[Sequence[str]]) -> dict[str, dict[str, float]]:
        """Session -> what its row says of the person."""
        path = self.root / person / f"{person}_sessions.tsv"
        if not path.is_file():
            return {}
        table = read_table(path)
        rows = dict(enumerate(table.ids("session_id")))
        firsts = table.one_each(rows, {name for some in columns for name in some}, "session_id")
        facts = self._attributes(table, *columns)
        return {session: facts[k] for session, k in firsts.items()}


def _agreed(rows: Sequence[int], facts: Sequence[dict[str, float]]) -> int | None:
    """The first of a visit's rows, if all of them say the same."""
    return rows[0] if len({str(facts[row]) for row in rows}) == 1 else None


def _matches(description: str, pattern: str) -> bool:
    """Whether a series' name is one of a pattern, upper and lower case, blanks and punctuation alike."""
    name, form = description.casefold(), pattern.casefold()
    return fnmatchcase(name, form) or fnmatchcase(re.sub(r"\W", "_", name), re.sub(r"[^\w*?\[\]!]", "_", form))


def _instead(names: Iterable[str], remedy: str) -> str:
    """What there is instead of a T1-weighted image, and what to do; "" if there is nothing."""
    found = sorted(names)
    more = f" and {len(found) - MAX_NAMES} more" if len(found) > MAX_NAMES else ""
    return f"; there are {', '.join(found[:MAX_NAMES])}{more}; {remedy}" if found else ""


def _date(text: str) -> str:
    """M/D/YYYY as YYYY-MM-DD, the form of folder names; "" if it is not a date."""
    match = re.fullmatch(r"(\d{1,2})/(\d{1,2})/(\d{4})", text.strip())
    return f"{match[3]}-{int(match[1]):02d}-{int(match[2]):02d}" if match else ""
