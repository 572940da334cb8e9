"""LIDC-IDRI: CT slices with nodules, their ratings and label maps, from a TCIA download as it lies.

Any tree below the root will do, as long as the files of a series share a folder, which may hold several series:

    <patient>/<date>-NA-NA-<study>/<number>.000000-NA-<series>/1-001.dcm    NBIA Data Retriever, descriptive names
    <patient>/<date>-<study>/<number>.000000-<series>/000001.dcm            the same, older
    <patient>/<StudyInstanceUID>/<SeriesInstanceUID>/1-001.dcm              classic names

with each series' XML in its folder, or all of them in the folder that TCIA offers by itself (tcia-lidc-xml). Chest
films and their XML are passed over. LIDC-IDRI is public: doi.org/10.7937/K9/TCIA.2015.LO9QL9SX, CC BY 3.0.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from data_modules.base import MedicalDataModule
from data_modules.figures import ct_statistics
from data_modules.lidc.annotations import HIGHEST
from data_modules.lidc.semantic_maps import CLASSES
from data_modules.listing import is_dicom, suffix_of
from data_modules.recipes.ct_slices import ANNOTATIONS, CTSlices
from data_modules.records import Record, sha256, table, write_changed
from data_modules.sources import Raw, Rejected, Scan
from data_modules.splits import Split
from data_modules.views import Crop
from lit_medgen.batch import DataSpec
from lit_medgen.errors import InputError
from lit_medgen.images import DICOM_SUFFIXES
from lit_medgen.images.dicom import group_by_series, header_of
from lit_medgen.images.dicom_slices import read_dataset
from lit_medgen.images.png import write_figure

PATIENT = re.compile(r"LIDC-IDRI-\d{4}")
SERIES = re.compile(r"<SeriesInstanceUid>\s*([\d.]{1,64})\s*<")
HEAD_BYTES = 4096  # of an XML file: its header, which names the series
OTHER_MODALITIES = ("DX", "CR", "SEG", "SR")  # chest films, and what others derived from the scans


class LIDCDataModule(MedicalDataModule):
    """Axial CT slices of LIDC-IDRI, each with its label map of eight classes.

    Attributes of every slice, of the largest nodule in it, medians over readers: malignancy, lobulation, spiculation,
    texture, subtlety (1 to 5), diameter_mm, and malignant (0 or 1); NaN where there is no nodule. All nodules stand in
    `nodules.csv` of the store.

    Args:
        root: the downloaded folder, XML files in it.
        ct: which slices are kept, and what their maps say.
        crop: a part of each slice, e.g. of 64 x 64 pixels around its largest nodule (centre `nodule`); None: whole
            slices.
        nodules_only: only slices with a nodule, whose attributes are known, as classifiers of nodules need.
        malignant_from: a nodule is malignant from this malignancy on.
    """

    remedy = (
        "LIDC-IDRI is public: download images and XML with the NBIA Data Retriever from "
        "cancerimagingarchive.net/collection/lidc-idri. To try without it, draw phantoms: "
        "`python -m lit_medgen phantom lidc --out demo/chests --num_subjects 20`."
    )

    def __init__(
        self,
        root: str,
        ct: CTSlices = CTSlices(),  # noqa: B008 (frozen)
        crop: Crop | None = None,
        nodules_only: bool = False,
        malignant_from: float = 3,
        **common: Any,  # jsonargparse reads the base's signature through this, so a misspelt key is an error
    ) -> None:
        recipe: Any = ct  # the base's type is for the config's sake; only `make_spec` looks into it
        super().__init__(root, preprocessing=recipe, axis="axial", view=crop, **common)
        self.ct, self.nodules_only, self.malignant_from = ct, nodules_only, malignant_from
        if not 1 < malignant_from <= HIGHEST["malignancy"]:
            raise InputError(
                f"data.init_args.malignant_from is {malignant_from}; give more than 1, at most {HIGHEST['malignancy']}."
            )

    def shown(self, records: list[Record]) -> list[Record]:
        """With the attribute `malignant`; of `nodules_only` those with a nodule."""
        found = []
        for record in records:
            malignancy = record.attributes["malignancy"]
            malignant = malignancy if math.isnan(malignancy) else float(malignancy >= self.malignant_from)
            if not (self.nodules_only and math.isnan(malignancy)):
                found.append(replace(record, attributes={**record.attributes, "malignant": malignant}))
        if records and not found:
            raise InputError(
                f"data.init_args.nodules_only: none of the {len(records):,} slices has a nodule that enough readers "
                "drew; lower data.init_args.ct.min_readers, or give a root with nodules."
            )
        return found

    def order(self) -> dict[str, Any]:
        """What decides which samples a step sees; see `ResumableLoaders.order`."""
        return super().order() | {"malignant_from": self.malignant_from}

    def scans(self) -> tuple[list[Scan], list[Rejected]]:
        """One scan for each CT series with annotations."""
        xml, rejected = self._xml()
        scans: list[Scan] = []
        used: set[str] = set()
        for folder, files in self._series():
            try:
                modality, series_uid, patient_id = _header(files)
                if modality in OTHER_MODALITIES:
                    continue
                used.add(series_uid)
                person = _person(folder, patient_id)
                session = sha256(series_uid.encode())[:8]
                beside: dict[str, Raw] = {ANNOTATIONS: _annotations(folder, xml.get(series_uid, []))}
                scans.append(Scan(files, person, session, {}, beside))
            except ValueError as error:
                rejected.append(Rejected(str(folder), str(error)))
        rejected += [
            Rejected(str(path), "no CT series of its SeriesInstanceUid")
            for uid, paths in xml.items()
            if uid not in used
            for path in paths
        ]
        return scans, rejected

    def _series(self) -> list[tuple[Path, list[Path]]]:
        """Folders with the DICOM files of a series in each; a link without a target is an error when it is read."""
        found: dict[Path, list[Path]] = defaultdict(list)
        broken = [Path(row.source) for row in self.tree().lost]
        for path in sorted([*self.tree().files, *(path for path in broken if suffix_of(path) in DICOM_SUFFIXES)]):
            if is_dicom(path):
                found[path.parent].append(path)
        return [
            (folder, series)
            for folder, files in sorted(found.items())
            for series in (group_by_series(files) if _are_several(files) else [files])
        ]

    def _xml(self) -> tuple[dict[str, list[Path]], list[Rejected]]:
        """Series -> the XML files about it, and XML files that name none."""
        found: dict[str, list[Path]] = defaultdict(list)
        refused = [row for row in self.tree().lost if suffix_of(Path(row.source)) not in DICOM_SUFFIXES]
        for path in (path for path in self.tree().files if suffix_of(path) == ".xml"):
            try:
                with path.open("rb") as file:
                    head = file.read(HEAD_BYTES).decode("latin-1")
            except OSError as error:
                refused.append(Rejected(str(path), f"cannot be read ({error.strerror})"))
                continue
            if match := SERIES.search(head):
                found[match[1]].append(path)
            elif "IdriReadMessage" not in head:  # that is about a chest film
                refused.append(Rejected(str(path), "no SeriesInstanceUid at its beginning; expected LIDC's XML"))
        return found, refused

    def prepare(self, verify: bool = False, figures: bool = False) -> tuple[list[Record], list[Rejected]]:
        """Writes the store, `nodules.csv` in it, and with `figures` also `figures/statistics.png`."""
        accepted, rejected = super().prepare(verify, figures)
        facts = self.scan_facts(accepted)
        _write_nodules(self.address.folder, accepted, facts)
        rank_zero_info(_summary(list(facts.values())))
        if figures:
            figure = ct_statistics(list(facts.values()), CLASSES, tuple(HIGHEST))
            write_figure(self.address.folder / "figures" / "statistics.png", figure)
        return accepted, rejected

    def scan_facts(self, records: Iterable[Record]) -> dict[str, dict[str, Any]]:
        """Key of a scan -> what the store keeps of it: its slices, its nodules and more; see `CTSlices.write`."""
        keys = dict.fromkeys(record.file for record in records)
        folder = self.address.folder / "volumes"
        return {key: json.loads((folder / f"{key}.json").read_text()) for key in keys}

    def make_spec(self) -> DataSpec:
        """Slices of every scan's own pixel spacing; the spec gives the median of the training scans."""
        of_scan = {record.file: float(record.facts["spacing_mm"][0]) for record in self.records["train"]}
        spacing_mm = float(np.median(list(of_scan.values())))
        return replace(super().make_spec(), spacing_mm=(spacing_mm, spacing_mm))

    def stored_spec(self) -> DataSpec:
        """What the config decides; the spacing is not known before the scans are read."""
        low, high = self.ct.numbers.window
        return DataSpec(
            channels=1,
            size=self.ct.kept_size[::-1],
            spacing_mm=(math.nan, math.nan),
            orientation="LP",
            intensity_window=(float(low), float(high)),
            intensity_unit="HU",
            classes=CLASSES,
        )

    def first_visits(self, split: Split) -> list[Record]:
        """A slice of each person: the middle one of those with a nodule, or of all."""
        of_person: dict[str, list[Record]] = defaultdict(list)
        for record in self.records[split]:
            of_person[record.person].append(record)
        chosen = []
        for records in of_person.values():
            known = [record for record in records if np.isfinite(record.attributes["malignancy"])] or records
            chosen.append(known[len(known) // 2])
        return chosen


def _are_several(files: list[Path]) -> bool:
    """Whether a folder's first, middle and last file are not of one series; all files of all scans take minutes."""
    headers = [header_of(path) for path in (files[0], files[len(files) // 2], files[-1])]
    return len({str(header.get("SeriesInstanceUID", "")) for header in headers if header is not None}) > 1


def _header(files: list[Path]) -> tuple[str, str, str]:
    """Modality, UID of the series and ID of the patient; none of it is kept but in hashes.

    From the first file that can be read; a bad one is named when the series is read. ValueError if none can be.
    """
    import pydicom

    for path in files:
        try:
            with pydicom.config.disable_value_validation():
                header = read_dataset(path, stop_before_pixels=True)
                names = ("Modality", "SeriesInstanceUID", "PatientID")
                modality, series_uid, patient_id = (str(header.get(name) or "") for name in names)
        except Exception:  # pydicom lets out whatever its parts raise
            continue
        if modality and series_uid:
            if modality not in ("CT", *OTHER_MODALITIES):
                raise ValueError(f"modality {modality[:16]!r}; expected CT")
            return modality, series_uid, patient_id
    raise ValueError("no file says modality and series; expected DICOM slices")


def _person(folder: Path, patient_id: str) -> str:
    """Whose scan it is: by the folders' names, or the header."""
    named = [part for part in folder.parts if PATIENT.fullmatch(part)]
    if not (person := named[-1] if named else patient_id):
        raise ValueError("neither a folder LIDC-IDRI-<number> nor a patient ID; expected to know whose scan it is")
    return person


def _annotations(folder: Path, found: list[Path]) -> Path:
    """The XML of a series: the one in its folder, or elsewhere; of several different ones that called a correction."""
    candidates = [path for path in found if path.parent == folder] or found
    if not candidates:
        raise ValueError("no XML of its series; put LIDC-XML-only below the root")
    different = list({path.read_bytes(): path for path in reversed(candidates)}.values())
    if len(different) > 1:
        different = [path for path in different if "correction" in path.name] or different
    if len(different) > 1:
        names = ", ".join(sorted(path.name for path in different))
        raise ValueError(f"{len(different)} different XML files of its series ({names}); keep the right one")
    return different[0]


def _summary(facts: list[dict[str, Any]]) -> str:
    """What of the scans must not pass unseen."""
    thickness = Counter(scan["thickness_mm"] for scan in facts)
    twice = sum(scan["num_duplicates"] > 0 for scan in facts)
    unrated = sum(scan["num_unrated"] for scan in facts)
    return (
        f"{sum(len(scan['images']) for scan in facts)} slices of {len(facts)} scans, "
        f"{sum(len(scan['nodules']) for scan in facts)} nodules; slice thickness "
        + ", ".join(f"{mm:g} mm: {count}" for mm, count in sorted(thickness.items()))
        + (f"; {twice} scans have slices delivered twice, which count once" if twice else "")
        + (f"; {unrated} outlines have no ratings and are left out" if unrated else "")
    )


def _write_nodules(folder: Path, scans: Iterable[Record], facts: Mapping[str, dict[str, Any]]) -> None:
    """`nodules.csv`: every nodule with the key of its scan, where it lies, who rated it how."""
    names = ("row", "column", "slice", "first", "last")
    ratings = ("voxels", "num_readers", "diameter_mm", *HIGHEST)
    rows = []
    for scan in scans:
        for number, nodule in enumerate(facts[scan.key]["nodules"]):
            where = dict(zip(names, [*nodule["centre"], *nodule["slices"]], strict=True))
            row = {"scan": scan.key, "person": scan.person, "nodule": number}
            rows.append(row | where | {name: nodule[name] for name in ratings})
    write_changed(folder / "nodules.csv", table(rows, ["scan", "person", "nodule", *names, *ratings]))
