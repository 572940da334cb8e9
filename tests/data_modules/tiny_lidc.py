"""A least LIDC-IDRI: CT series of a drawn chest of 96 x 96 pixels and XML about squares in its lung."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset

from data_modules.lidc.annotations import HIGHEST
from lit_medgen.images.dicom_writer import Series, slice_dataset, write_slice

SIDE, SPACING_MM, GAP_MM = 96, 4.0, 2.5
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]


def inside(row: float, column: float, height: float, width: float) -> np.ndarray:
    mask: np.ndarray = ((ROWS - row) / height) ** 2 + ((COLUMNS - column) / width) ** 2 < 1
    return mask


LEFT_LUNG, RIGHT_LUNG = inside(46, 66, 19, 12), inside(46, 30, 17, 10)
NODULE = slice(44, 50), slice(62, 68)  # rows, columns; in the left lung, which is on the right of the picture


def chest(number: int, place: int, nodule: bool) -> np.ndarray:
    """HU of a slice, int16: each has noise of its own, and none is symmetric, so that none is taken for another."""
    hu = np.full((SIDE, SIDE), -1000.0)
    hu[inside(48, 48, 30, 42)] = 40
    hu[LEFT_LUNG | RIGHT_LUNG] = -850
    hu[inside(70, 48, 6, 5)] = 400
    if nodule:
        hu[NODULE] = 30
    return (hu + np.random.default_rng([number, place]).normal(0, 10, hu.shape)).round().astype(np.int16)


@dataclass
class TinyScan:
    """One scan; change what is wanted and write it.

    Attributes:
        number: of the patient; UIDs follow from it.
        num_slices: of the series.
        orientation: of DICOM.
        nodule: first and last slice of the nodule; None: no reader drew one.
        malignancy: by the readers who drew it.
        change: called with each slice's data and number before it is written; returns False to leave it out.
    """

    number: int = 1
    num_slices: int = 10
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0)
    nodule: tuple[int, int] | None = (4, 5)
    malignancy: Sequence[int] = (3, 4, 4, 5)
    thickness_mm: float = GAP_MM
    change: Callable[[Dataset, int], bool | None] = lambda data, place: None

    @property
    def series_uid(self) -> str:
        return f"1.3.6.1.4.1.14519.{self.number}.2"

    def write(self, folder: Path) -> Path:
        """Slices under names that say nothing, and 069.xml beside them."""
        folder.mkdir(parents=True)
        series = Series(
            study_uid=f"1.3.6.1.4.1.14519.{self.number}.1",
            series_uid=self.series_uid,
            patient_id=f"LIDC-IDRI-{self.number:04d}",
            kind="ct",
            thickness_mm=self.thickness_mm,
        )
        names = np.random.default_rng(self.number).permutation(self.num_slices) + 1
        for place in range(self.num_slices):
            data = self._slice(series, place)
            if self.change(data, place) is not False:
                write_slice(folder / f"1-{names[place]:03d}.dcm", data)
        (folder / "069.xml").write_text(self.xml())
        return folder

    def _slice(self, series: Series, place: int) -> Dataset:
        along, down = np.array(self.orientation[:3]), np.array(self.orientation[3:])
        shown = self.pixels(place)[:: 1 if down[1] > 0 else -1, :: 1 if along[0] > 0 else -1]
        upwards = abs(np.cross(along, down)) * GAP_MM
        middle = place * upwards - [0, 0, 100]
        first = middle - (along + down) * SPACING_MM * (SIDE - 1) / 2
        pixels = (shown + 1024).astype(np.int16)
        data = slice_dataset(series, pixels, first, self.orientation, (SPACING_MM, SPACING_MM), 1000 - place)
        data.RescaleIntercept, data.RescaleSlope = "-1024", "1"
        return data

    def pixels(self, place: int) -> np.ndarray:
        """HU of a slice, upright."""
        return chest(self.number, place, self.nodule is not None and self.nodule[0] <= place <= self.nodule[1])

    def z_mm(self, place: int) -> float:
        """Of a slice."""
        return -100 + GAP_MM * place

    def xml(self, z_mm: Callable[[int], float] | None = None) -> str:
        """What its readers drew: the outline of the nodule, in the pixels of the files."""
        sessions = "".join(
            f"<readingSession>{self._drawn(rating, z_mm or self.z_mm)}</readingSession>" for rating in self.malignancy
        )
        return (
            '<?xml version="1.0" encoding="UTF-8"?><LidcReadMessage xmlns="http://www.nih.gov"><ResponseHeader>'
            f"<SeriesInstanceUid>{self.series_uid}</SeriesInstanceUid><StudyInstanceUID>1.2</StudyInstanceUID>"
            f"</ResponseHeader>{sessions}</LidcReadMessage>"
        )

    def _drawn(self, rating: int, z_mm: Callable[[int], float]) -> str:
        if self.nodule is None:
            return ""
        values = dict.fromkeys(HIGHEST, 3) | {"malignancy": rating}
        ratings = "".join(f"<{name}>{value}</{name}>" for name, value in values.items())
        rois = "".join(
            f"<roi><imageZposition>{z_mm(place)}</imageZposition><inclusion>TRUE</inclusion>{self._outline()}</roi>"
            for place in range(self.nodule[0], self.nodule[1] + 1)
        )
        return f"<unblindedReadNodule><characteristics>{ratings}</characteristics>{rois}</unblindedReadNodule>"

    def _outline(self) -> str:
        rows, columns = ((part.start - 1, part.stop) for part in NODULE)
        corners = [(r, c) for r in range(rows[0], rows[1] + 1) for c in range(columns[0], columns[1] + 1)]
        edge = [(r, c) for r, c in corners if r in rows or c in columns]
        middle = np.mean(edge, axis=0)
        edge.sort(key=lambda point: float(np.arctan2(point[0] - middle[0], point[1] - middle[1])))
        flip_rows, flip_columns = self.orientation[4] < 0, self.orientation[0] < 0
        return "".join(
            f"<edgeMap><xCoord>{SIDE - 1 - c if flip_columns else c}</xCoord>"
            f"<yCoord>{SIDE - 1 - r if flip_rows else r}</yCoord></edgeMap>"
            for r, c in edge
        )


def write_tiny(root: Path, num: int = 6, **facts: Any) -> Path:
    """So many patients, one scan each."""
    for number in range(1, num + 1):
        scan = TinyScan(number, **facts)
        scan.write(root / "LIDC-IDRI" / f"LIDC-IDRI-{number:04d}" / f"01-01-2000-NA-NA-{number}" / "3000.000000-NA-1")
    return root
