"""NIH ChestX-ray14: 112,120 frontal chest radiographs of 30,805 patients, with 14 findings read from reports.

    <root>/images_001/images/00000001_000.png ...   folders, as on Kaggle; or images/*.png; or all in one folder
    <root>/images_001.tar.gz ...                    or the archives as NIH delivers them, packed or not, not extracted
    <root>/Data_Entry_2017_v2020.csv                or Data_Entry_2017.csv: findings, patients, views, pixel sizes
    <root>/BBox_List_2017.csv                       boxes around findings of 880 images
    <root>/train_val_list.txt, test_list.txt        the official split, by patient

Public: https://nihcc.app.box.com/v/ChestXray-NIHCC; Wang X. et al., "ChestX-ray8", CVPR 2017.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_modules import tars
from data_modules.base import MedicalDataModule
from data_modules.chestxray_tables import (
    BOX,
    BOX_FINDING,
    CODES,
    FINDING,
    FINDINGS,
    INDEX,
    NAME,
    ORIGINAL,
    VIEWS,
    Box,
    Known,
    boxes,
    of_images,
    official_lists,
    the_only,
)
from data_modules.recipes.radiographs import WHITE, Radiograph
from data_modules.records import Record
from data_modules.sources import Raw, Rejected, Scan, TarMember
from data_modules.split_lists import NameList
from data_modules.tables import SEX, columns_of
from data_modules.views import Crop
from lit_medgen.batch import DataSpec
from lit_medgen.errors import InputError

SUFFIXES = (".csv", ".tsv", ".txt")
DEPTH = 2
"""Parts of a table's path below the root, at most."""


class ChestXrayDataModule(MedicalDataModule):
    """Frontal chest radiographs of ChestX-ray14, a 2D image each, in 8 bits; patients have 1 to 184 of them.

    Attributes of every image: the 14 findings (atelectasis, cardiomegaly, consolidation, edema, effusion, emphysema,
    fibrosis, hernia, infiltration, mass, nodule, pleural_thickening, pneumonia, pneumothorax) and no_finding, each 0 or
    1; sex (0 female, 1 male); view (0 PA, 1 AP); age_years. NaN where unknown. Facts of images with boxes: `boxes`
    (see `boxes_of`) and `box`, the middle of the largest, around which a `Crop` can be taken.

    Args:
        root: folder of the images and tables.
        size: columns and rows that are kept; each pixel is the mean over its area.
        table: the table of images, also below the root; None: the one at the top of `root` that has columns
            `Image Index` and `Finding Labels`, of several the one of 2020. Without one only patients are known.
        boxes: the list of boxes; None: the one at the top of `root`, if there is one.
        official_split: whether the two lists decide who is tested. Validation people are then a share of the others,
            fractions[1] / (fractions[0] + fractions[1]). None: if the lists are there, and neither `fold` nor
            `split_files` (names of images, or patients) is given.
        crop: a part of each image, e.g. of 32 x 32 pixels around its largest box (centre `box`); None: whole images.
    """

    ids_are_in_names = True
    remedy = (
        "ChestX-ray14 is public: download images_001.tar.gz to images_012.tar.gz and the tables from "
        "nihcc.app.box.com/v/ChestXray-NIHCC (docs/chestxray.md). To try a method without it, draw phantoms: "
        "`python -m lit_medgen phantom chestxray --out demo/chestxray --num_subjects 100`."
    )

    def __init__(
        self,
        root: str,
        size: tuple[int, int] = (64, 64),
        table: str | None = None,
        boxes: str | None = None,
        official_split: bool | None = None,
        crop: Crop | None = None,
        **common: Any,  # jsonargparse reads the base's signature through this, so a misspelt key is an error
    ) -> None:
        recipe: Any = Radiograph(tuple(size))  # the base's type is for the config's sake
        super().__init__(root, preprocessing=recipe, axis="axial", view=crop, **common)
        if official_split and self.fold is not None:
            raise InputError("data.init_args.official_split and fold exclude each other; leave one out.")
        if official_split and self.split_files is not None:
            raise InputError("data.init_args.official_split and split_files exclude each other; leave one out.")
        self.table, self.boxes, self.official_split = table, boxes, official_split

    def listing(self) -> dict[str, Any]:
        """All arguments of its own that decide which images are listed."""
        return {"table": self.table, "boxes": self.boxes, "official_split": self.official_split}

    def excluded(self) -> set[str]:
        """Patients of the file `exclude`, with or without leading zeros."""
        ids = super().excluded()
        if bad := [cell for cell in ids if not re.fullmatch(r"\d{1,8}", cell, re.ASCII)]:
            raise InputError(
                f"data.init_args.exclude: {len(bad)} lines of {self.exclude} are no patients; expected a number in "
                "each, such as 13118 or 00013118."
            )
        return set(map(self.person_id, ids))

    def scans(self) -> tuple[list[Scan], list[Rejected]]:
        """One scan for each image that the table names."""
        sources, rejected = self._images()
        if not sources:
            return [], rejected
        known, found = self._known(), self._boxes()
        most = max(map(len, found.values()), default=0)
        scans = []
        for name, source in sources.items():
            patient, number = name[:8], name[9:12]
            person = str(int(patient))
            if person in self.left_out.ids:
                scans.append(Scan(source, person, number))  # to be counted, not to be read
                continue
            if known.path and name not in known.attributes:
                rejected.append(Rejected(str(source), f"no row of {known.path.name} names it"))
                continue
            facts = self._facts(found.get(name, []), most)
            affine = self._affine(known.extent_mm.get(name, (math.nan, math.nan)))
            attributes = known.attributes.get(name, {})
            scans.append(Scan(source, person, number, attributes, name=name, facts=facts, affine=affine))
        self._remark(sources, known, found)
        return scans, rejected

    def boxes_of(self, record: Record) -> list[Box]:
        """The boxes of an image in pixels of the store, from the top left corner."""
        rows = record.facts.get("boxes", np.empty(0)).reshape(-1, 5)
        return [Box(FINDINGS[int(row[0])], *map(float, row[1:])) for row in rows if np.isfinite(row).all()]

    def category_names(self) -> dict[str, tuple[str, ...]]:
        """Name of an attribute that is a category -> the names of its values 0, 1, ..."""
        return {"sex": tuple(SEX), "view": tuple(VIEWS)}

    def make_spec(self) -> DataSpec:
        """Codes are 0 and 1 whether or not a rare finding is among the training people; pixels of a median size."""
        spec = super().make_spec()
        codes = tuple(name for name in spec.attributes if name in CODES)
        steps = np.array([np.diag(record.affine)[:2] for record in self.records["train"]])
        steps = steps[np.isfinite(steps).all(1)]
        across, down = map(float, np.median(steps, axis=0))
        ranges = spec.attributes | dict.fromkeys(codes, (0.0, 1.0))
        return replace(spec, attributes=ranges, codes=codes, spacing_mm=(across, down))

    def stored_spec(self) -> DataSpec:
        """What the config decides; the pixels' size in the patient is not known before the table is read."""
        return DataSpec(
            channels=1,
            size=self.preprocessing.size,
            spacing_mm=(math.nan, math.nan),
            orientation="",
            intensity_window=(0.0, float(WHITE)),
            intensity_unit="8 bit",
        )

    def split_lists(self) -> dict[str, NameList]:
        """The lists of `split_files`, or the official ones where they count."""
        if self.split_files or self.official_split is False or self.fold is not None:
            return super().split_lists()
        near = (path for path in self.tree().files if len(path.relative_to(self.root).parts) <= DEPTH)
        lists = official_lists(near)
        if self.official_split and not lists:
            raise InputError(
                f"data.init_args.official_split: no train_val_list.txt and test_list.txt at the top of {self.root}; "
                "add them, or set it to null to split patients by data.init_args.fractions."
            )
        return lists

    @property
    def tells_absent(self) -> bool:  # type: ignore[override]
        """The official lists name all of 112,120 images, of which users may have a part."""
        return bool(self.split_files)

    def person_id(self, text: str) -> str:
        """The number of a patient, with or without leading zeros."""
        return str(int(text)) if re.fullmatch(r"\d{1,8}", text, re.ASCII) else text

    def person_of_image(self, name: str) -> str | None:
        """The patient with whom the name of an image begins."""
        return str(int(name[:8])) if NAME.fullmatch(name.lower()) else None

    def _images(self) -> tuple[dict[str, Raw], list[Rejected]]:
        """Name -> its file or archive, by folder and archive; what is there twice, and archives that are refused."""
        found: dict[str, Raw] = {}
        rejected, self._others = list(self.tree().lost), 0
        for name, source in self._every_image(rejected):
            if name in found:
                rejected.append(Rejected(str(source), "another file of the same image"))
            else:
                found[name] = source
        return found, rejected

    def _every_image(self, rejected: list[Rejected]) -> Iterator[tuple[str, Raw]]:
        for path in self.tree().files:
            if tars.is_tar(path):
                try:
                    places = tars.places(path, self.store_dir, self._is_left_out, self.left_out.digest)
                except ValueError as error:
                    rejected.append(Rejected(str(path), str(error)))
                    continue
                for place in places:
                    name = Path(place.name).name.lower()
                    if NAME.fullmatch(name):
                        yield name, TarMember(path, place.name, place.offset, place.size)
                    else:
                        self._others += 1
            elif NAME.fullmatch(path.name.lower()):
                yield path.name.lower(), path

    def _is_left_out(self, place: tars.Place) -> bool:
        """Whether a member of an archive is of somebody who is left out."""
        name = Path(place.name).name.lower()
        return NAME.fullmatch(name) is not None and str(int(name[:8])) in self.left_out.ids

    def _tables(self, needed: set[str]) -> list[Path]:
        """Tables at the top of the root that have these columns."""
        files = (path for path in self.tree().files if path.suffix.lower() in SUFFIXES)
        near = (path for path in files if len(path.relative_to(self.root).parts) <= DEPTH)
        return [path for path in near if needed <= set(columns_of(path))]

    def _given(self, path: str | None, key: str, needed: set[str]) -> Path | None:
        if path is None:
            return the_only(self._tables(needed), key, self.root)
        return Path(path) if Path(path).is_file() else self.root / path

    def _known(self) -> Known:
        path = self._given(self.table, "table", {INDEX, FINDING})
        if path is None:
            return Known(lines=["no table Data_Entry_2017*.csv at the top of the root: only patients are known"])
        return of_images(path, self.unread)

    def _boxes(self) -> dict[str, list[Box]]:
        path = self._given(self.boxes, "boxes", {INDEX, BOX_FINDING, *BOX})
        return boxes(path) if path else {}

    def _facts(self, found: list[Box], most: int) -> dict[str, list[float]]:
        """Boxes in pixels of the store, as numbers; nothing without one."""
        if not found:
            return {}
        across, down = (side / ORIGINAL for side in self.preprocessing.size)
        rows = [
            [FINDINGS.index(box.finding), box.x * across, box.y * down, box.width * across, box.height * down]
            for box in found
        ]
        largest = max(rows, key=lambda row: row[3] * row[4])
        middle = [largest[1] + largest[3] / 2 - 0.5, largest[2] + largest[4] / 2 - 0.5]  # pixels count from middles
        rows += [[math.nan] * 5] * (most - len(rows))
        return {"boxes": [value for row in rows for value in row], "box": middle}

    def _affine(self, extent_mm: tuple[float, float]) -> np.ndarray | None:
        """Pixel to world of a stored image, from the size of what it shows; None where that is unknown."""
        step = np.array(extent_mm) / self.preprocessing.size
        if not np.isfinite(step).all():
            return None
        affine = np.diag([*step, 1.0, 1.0])
        affine[:2, 3] = step / 2
        return affine

    def _remark(self, sources: Mapping[str, Raw], known: Known, found: Mapping[str, list[Box]]) -> None:
        """What to say of tables: rows without an image, boxes of findings that the table does not name."""
        self.remarks += known.lines
        rows = known.attributes.keys()
        if absent := len(rows - sources.keys()):
            self.remarks.append(f"{absent} of {len(rows)} rows of the table are of images that are not here")
        names = rows & found.keys()
        if odd := sum(not known.attributes[name][box.finding] for name in names for box in found[name]):
            self.remarks.append(f"{odd} boxes are of findings that the table does not name")
        if self._others:
            self.remarks.append(f"passed over {self._others} files in archives: not named <patient>_<number>.png")
        per_patient = Counter(name[:8] for name in sources)
        self.remarks.append(f"images of a patient: {min(per_patient.values())} to {max(per_patient.values())}")
