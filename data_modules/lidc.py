"""LIDC-IDRI: CT slices with nodules, their ratings and label maps, from a TCIA download as it lies.

Any tree below the root will do, as long as the files of a series share a folder:

    <patient>/<date>-NA-NA-<study>/<number>.000000-NA-<series>/1-001.dcm    NBIA Data Retriever, descriptive names
    <patient>/<date>-<study>/<number>.000000-<series>/000001.dcm            the same, older
    <patient>/<StudyInstanceUID>/<SeriesInstanceUID>/1-001.dcm              classic names

with each series' XML in its folder, or all of them in the folder that TCIA offers by itself (tcia-lidc-xml). Chest
films and their XML are passed over. LIDC-IDRI is public: doi.org/10.7937/K9/TCIA.2015.LO9QL9SX, CC BY 3.0.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from data_modules.base import MedicalDataModule
from data_modules.lidc_annotations import HIGHEST
from data_modules.lidc_slices import CTScan, CTSlices, SliceStore
from data_modules.semantic_maps import CLASSES
from data_modules.splits import Split
from data_modules.store import Record, Rejected, Scan
from lit_medgen.batch import DataSpec
from lit_medgen.files import write_atomically
from lit_medgen.images.png import write_figure

PATIENT = re.compile(r"LIDC-IDRI-\d{4}")
SERIES = re.compile(r"<SeriesInstanceUid>\s*([\d.]{1,64})\s*<")
HEAD_BYTES = 4096  # of an XML file: its header, which names the series


class LIDCDataModule(MedicalDataModule):
    """Axial CT slices of LIDC-IDRI, each with its label map of eight classes.

    Attributes of every slice, of the largest nodule in it, medians over readers: malignancy, lobulation, spiculation,
    texture, subtlety (1 to 5) and diameter_mm; NaN where there is no nodule. All nodules stand in `nodules.csv` of the
    store.

    Args:
        root: the downloaded folder, XML files in it.
        ct: which slices are kept, and what their maps say.
    """

    store: SliceStore
    remedy = (
        "LIDC-IDRI is public: download images and XML with the NBIA Data Retriever from "
        "cancerimagingarchive.net/collection/lidc-idri. To try without it, draw phantoms: "
        "`python -m lit_medgen phantom lidc --out demo/chests --num_subjects 20`."
    )

    def __init__(
        self,
        root: str,
        ct: CTSlices = CTSlices(),  # noqa: B008 (frozen)
        **common: Any,  # jsonargparse reads the base's signature through this, so a misspelt key is an error
    ) -> None:
        recipe: Any = ct  # the base's type is for the config's sake; only `make_spec` looks into it
        super().__init__(root, preprocessing=recipe, axis="axial", slices=None, **common)
        self.ct = ct

    def scans(self) -> tuple[list[Scan], list[Rejected]]:
        """One scan for each CT series with annotations."""
        xml, rejected = self._xml()
        scans: list[Scan] = []
        for folder, files in sorted(self._folders().items()):
            header = _header(files)
            if header is None:
                rejected.append(Rejected(str(folder), "no file can be read as DICOM"))
                continue
            if header.get("Modality", "") != "CT":
                continue  # a chest film
            uid = str(header.get("SeriesInstanceUID", ""))
            beside = [path for path in xml.get(uid, []) if path.parent == folder]
            annotations = next(iter([*beside, *xml.pop(uid, [])]), None)
            if annotations is None:
                rejected.append(Rejected(str(folder), "no XML of its series; put LIDC-XML-only below the root"))
                continue
            named = [part for part in folder.parts if PATIENT.fullmatch(part)]
            person = named[-1] if named else str(header.get("PatientID", uid))
            session = hashlib.sha256(uid.encode()).hexdigest()[:8]
            scans.append(CTScan(files, person, session, {}, annotations))
        rejected += [
            Rejected(str(path), "no CT series of its SeriesInstanceUid") for paths in xml.values() for path in paths
        ]
        return scans, rejected

    def _folders(self) -> dict[Path, list[Path]]:
        found: dict[Path, list[Path]] = defaultdict(list)
        for path in sorted(self.root.glob("**/*.dcm")):
            found[path.parent].append(path)
        return found

    def _xml(self) -> tuple[dict[str, list[Path]], list[Rejected]]:
        """Series -> the XML files about it, and XML files that name none."""
        found: dict[str, list[Path]] = defaultdict(list)
        nameless = []
        for path in sorted(self.root.glob("**/*.xml")):
            with path.open("rb") as file:
                head = file.read(HEAD_BYTES).decode("latin-1")
            if match := SERIES.search(head):
                found[match[1]].append(path)
            elif "IdriReadMessage" not in head:  # that is about a chest film
                nameless.append(Rejected(str(path), "no SeriesInstanceUid at its beginning; expected LIDC's XML"))
        return found, nameless

    def prepare(self, verify: bool = False, figures: bool = False) -> tuple[list[Record], list[Rejected]]:
        """Writes the store, `nodules.csv` in it, and with `figures` also `figures/statistics.png`."""
        accepted, rejected = super().prepare(verify, figures)
        store = self.open_store()
        _write_nodules(store)
        rank_zero_info(_summary(list(store.facts.values())))
        if figures:
            from data_modules.figures import ct_statistics

            figure = ct_statistics(list(store.facts.values()), CLASSES, tuple(HIGHEST))
            write_figure(store.folder / "figures" / "statistics.png", figure)
        return accepted, rejected

    def open_store(self) -> SliceStore:
        """Of slices."""
        return SliceStore(self.address, self.ct.numbers)

    def make_spec(self) -> DataSpec:
        """Slices of every scan's own pixel spacing; the spec gives the median of the training scans."""
        keys = {record.key.rpartition("-")[0] for record in self.records["train"]}
        spacing_mm = float(np.median([self.store.facts[key]["spacing_mm"] for key in keys]))
        low, high = self.ct.numbers.window
        return DataSpec(
            channels=1,
            size=self.ct.size[::-1],
            spacing_mm=(spacing_mm, spacing_mm),
            orientation="",
            intensity_window=(float(low), float(high)),
            intensity_unit="HU",
            classes=CLASSES,
            attributes=self.attribute_ranges(),
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


def _header(files: list[Path]) -> Any:
    """The header of the first file that can be read; None if none can."""
    import pydicom

    for path in files:
        try:
            return pydicom.dcmread(path, stop_before_pixels=True)
        except Exception:  # pydicom lets out whatever its parts raise; a bad slice is named when the series is read
            continue
    return None


def _summary(facts: list[dict[str, Any]]) -> str:
    """What of the scans must not pass unseen."""
    thickness = Counter(scan["thickness_mm"] for scan in facts)
    twice = sum(scan["num_duplicates"] > 0 for scan in facts)
    return (
        f"{sum(len(scan['slices']) for scan in facts)} slices of {len(facts)} scans, "
        f"{sum(len(scan['nodules']) for scan in facts)} nodules; slice thickness "
        + ", ".join(f"{mm:g} mm: {count}" for mm, count in sorted(thickness.items()))
        + (f"; {twice} scans have slices delivered twice, which count once" if twice else "")
    )


def _write_nodules(store: SliceStore) -> None:
    """`nodules.csv`: every nodule with the key of its scan, where it lies, who rated it how."""
    rows = [
        {"scan": key, "person": store.scans[key].person, "nodule": number, **_cells(nodule)}
        for key, facts in store.facts.items()
        for number, nodule in enumerate(facts["nodules"])
    ]
    text = io.StringIO()
    names = ["scan", "person", "nodule", "row", "column", "place", "first", "last", "voxels", "num_readers"]
    writer = csv.DictWriter(text, [*names, "diameter_mm", *HIGHEST])
    writer.writeheader()
    writer.writerows(rows)
    path = store.folder / "nodules.csv"
    if not path.is_file() or path.read_text() != text.getvalue():
        write_atomically(path, text.getvalue())


def _cells(nodule: dict[str, Any]) -> dict[str, Any]:
    (row, column, place), (first, last) = nodule["centre"], nodule["places"]
    ratings = {name: nodule[name] for name in ("voxels", "num_readers", "diameter_mm", *HIGHEST)}
    return {"row": row, "column": column, "place": place, "first": first, "last": last, **ratings}
