"""ADNI: the LONI download with its collection CSV, or the BIDS tree that clinica makes of it.

    LONI  <root>/[ADNI/]<PTID>/<Description>/<YYYY-MM-DD_HH_MM_SS.0>/<I... or S...>/<.nii or .dcm files>
          and a CSV with "Image Data ID", "Subject", "Sex", "Age", ... somewhere at the top
    BIDS  <root>/sub-*/ses-*/anat/*_T1w.nii.gz with participants.tsv and sub-*/*_sessions.tsv

ADNI needs an application to LONI (ida.loni.usc.edu); images must not be passed on.
"""

from __future__ import annotations

import math
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pandas as pd

from data_modules.base import MedicalDataModule
from data_modules.folder import as_rows, number, read_table, require_column
from data_modules.listing import READ, count_suffixes, is_dicom, is_image
from data_modules.store import Rejected, Scan
from lit_medgen.errors import InputError
from lit_medgen.images.dicom import group_by_series

PTID = re.compile(r"\d{3}_S_\d{4,5}")
T1_DESCRIPTIONS = ("MPR*Scaled*", "MPR*N3*", "MPR*", "*MPRAGE*", "*MP-RAGE*", "*MP_RAGE*", "*SPGR*")
SEX = {"F": 0.0, "Female": 0.0, "M": 1.0, "Male": 1.0}
DIAGNOSIS = (
    dict.fromkeys(("CN", "SMC"), 0.0)
    | dict.fromkeys(("EMCI", "MCI", "LMCI"), 1.0)
    | dict.fromkeys(("AD", "Dementia"), 2.0)
)


class ADNIDataModule(MedicalDataModule):
    """T1-weighted brains of ADNI, one for each person and visit.

    Attributes of every scan: age_years, sex (0 female, 1 male), diagnosis (0 cognitively normal, 1 mild cognitive
    impairment, 2 dementia); NaN where unknown.

    Args:
        root: the downloaded folder.
        table: the collection CSV of a LONI download; None: the CSV at the top of `root` that has the columns.
        descriptions: series that are taken, as shell patterns, best first; where a visit has several, the best is
            taken. None: the usual names of T1-weighted series. In folder names, blanks and punctuation are `_`.
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
        path, table = self._collection()
        # Series (S...) and images (I...) are numbered apart, so the letter may not be dropped from a folder's S.
        by_image = {(row["Subject"], row["Image Data ID"].removeprefix("I")): row for row in as_rows(table)}
        by_visit = {(row["Subject"], _date(row.get("Acq Date", ""))): row for row in as_rows(table)}
        best: dict[tuple[str, str], tuple[int, Scan]] = {}
        rejected = []
        for folder in (folder for folder in folders if people.intersection([*folder.parents][2:3])):
            person, description, date = folder.parts[-4:-1]
            rank = next((k for k, pattern in enumerate(self.descriptions) if fnmatch(description, pattern)), None)
            if rank is None:
                continue  # another sequence: a localizer, diffusion, ...
            row = by_image.get((person, folder.name.removeprefix("I"))) or by_visit.get((person, date[:10]))
            images = self._images(folder)
            if row is None or not images:
                there = count_suffixes(self.tree().of_folder.get(folder, []))
                reason = (
                    f"no row of {path.name} for this image"
                    if row is None
                    else "no .nii or .dcm file in this folder" + (f" ({there}; read are {READ})" if there else "")
                )
                rejected.append(Rejected(str(folder), reason))
                continue
            rejected += [Rejected(str(folder), "a second series in the folder of an image") for _ in images[1:]]
            scan = Scan(images[0], person, date[:10], self._attributes(row))
            if (person, date[:10]) not in best or rank < best[person, date[:10]][0]:
                best[person, date[:10]] = (rank, scan)
        found = {person for person, _ in best}
        missing = [person for person in table["Subject"].unique() if person not in found]
        rejected += [Rejected(f"{path}: {person}", "a subject without an image") for person in missing]
        return [scan for _, scan in best.values()], rejected

    def _images(self, folder: Path) -> list[Path] | list[list[Path]]:
        """The file of an image's folder that is a volume, or else its DICOM series, that of most files first."""
        files = self.tree().of_folder.get(folder, [])
        if volumes := [path for path in files if is_image(path) and path.suffix.lower() != ".png"]:
            return volumes[:1]
        return sorted(group_by_series([path for path in files if is_dicom(path)]), key=len, reverse=True)

    def _collection(self) -> tuple[Path, pd.DataFrame]:
        needed = ("Image Data ID", "Subject", "Sex", "Age")
        if self.table is None:
            candidates = sorted([*self.root.glob("*.csv"), *self.root.glob("*/*.csv")])
            tables = [(path, read_table(path)) for path in candidates]
            fitting = [(path, table) for path, table in tables if set(needed[:2]) <= set(table.columns)]
            if len(fitting) != 1:
                raise InputError(
                    f"data.init_args.table: {len(fitting)} CSV files at the top of {self.root} have the columns "
                    f"{needed[0]!r} and {needed[1]!r}; give the path of the collection CSV."
                )
            path, table = fitting[0]
        else:
            path = Path(self.table) if Path(self.table).is_file() else self.root / self.table
            table = read_table(path)
        for column in needed:
            require_column(table, column, path)
        return path, table

    @staticmethod
    def _attributes(row: dict[str, Any]) -> dict[str, float]:
        return {
            "age_years": number(row["Age"], {}),
            "sex": number(row["Sex"], SEX),
            "diagnosis": DIAGNOSIS.get(row.get("Group", ""), math.nan),
        }

    # The BIDS layout.

    def _bids(self) -> tuple[list[Scan], list[Rejected]]:
        path = self.root / "participants.tsv"
        table = read_table(path)
        require_column(table, "participant_id", path)
        heads: dict[str, list[Path]] = {}
        for image in self.tree().matching("sub-*/**/anat/*_T1w.nii*"):
            if is_image(image):
                heads.setdefault(image.relative_to(self.root).parts[0], []).append(image)
        scans, rejected = [], []
        for row in as_rows(table):
            person = str(row["participant_id"])
            visits: dict[str, Path] = {}
            for image in heads.get(person, []):
                visits.setdefault(image.parent.parent.name, image)  # the first run of a session
            if not visits:
                rejected.append(Rejected(f"{path}: {person}", "a subject without an image"))
            sessions = self._sessions(person)
            for session, image in visits.items():
                facts = _known(row) | _known(sessions.get(session, {}))
                attributes = {
                    "age_years": number(facts.get("age", facts.get("age_bl", "")), {}),
                    "sex": number(facts.get("sex", ""), SEX),
                    "diagnosis": DIAGNOSIS.get(str(facts.get("diagnosis", facts.get("diagnosis_bl", ""))), math.nan),
                }
                scans.append(Scan(image, person, session, attributes))
        rejected += [
            Rejected(str(image), f"no row of {path.name} for this image")
            for person in sorted(heads.keys() - set(table["participant_id"]))
            for image in heads[person]
        ]
        return scans, rejected

    def _sessions(self, person: str) -> dict[str, dict[str, Any]]:
        path = self.root / person / f"{person}_sessions.tsv"
        if not path.is_file():
            return {}
        table = read_table(path)
        require_column(table, "session_id", path)
        return {str(row["session_id"]): row for row in as_rows(table)}


def _known(row: dict[str, Any]) -> dict[str, Any]:
    """What a row of a BIDS table says, without its empty cells."""
    return {key: value for key, value in row.items() if value not in ("", "n/a")}


def _date(text: str) -> str:
    """M/D/YYYY as YYYY-MM-DD, the form of folder names; "" if it is not a date."""
    match = re.fullmatch(r"(\d{1,2})/(\d{1,2})/(\d{4})", text.strip())
    return f"{match[3]}-{int(match[1]):02d}-{int(match[2]):02d}" if match else ""
