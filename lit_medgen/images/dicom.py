"""DICOM series in: slices ordered by position along the normal, never by file name or instance number.

Every fault is a ValueError that says what was found and expected; the caller adds the folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag

from lit_medgen.images import begins_as_dicom
from lit_medgen.images.dicom_slices import HEAD_BYTES, Slice, is_projection, open_slices, read_projection, read_stored

SAME = 1e-4
"""Relative difference of two lengths that are one, written in other digits: over a whole image a tenth of a pixel."""
NAMES = ("SOPClassUID", "Modality", "PatientID", "SeriesInstanceUID", "ImageOrientationPatient", "NumberOfFrames")
TAGS: list[BaseTag | int] = [Tag(name) for name in NAMES]
LAST_TAG = Tag("NumberOfFrames")
"""What says to which image a file belongs stands at its beginning, up to there."""


@dataclass(frozen=True, eq=False)
class Series:
    """Slices of one volume, each at a position of its own.

    Attributes:
        slices: in order along the normal.
        step: from slice to slice, mm, RAS.
        num_duplicates: files left out, since another has the same pixels at the same position.
    """

    slices: tuple[Slice, ...]
    step: np.ndarray
    num_duplicates: int


def group_by_series(files: Sequence[Path]) -> list[list[Path]]:
    """DICOM files that lie together, a list for each image: the files of a series, or a radiograph alone.

    A file that is not DICOM, or damaged, stays with the only series, which is refused for it; beside several series it
    stands alone.
    """
    series: dict[str, list[Path]] = {}
    radiographs, unknown = [], []
    for path in files:
        header = header_of(path)
        if header is None:
            unknown.append(path)
        elif is_projection(header):
            radiographs.append([path])
        else:
            series.setdefault(str(header.get("SeriesInstanceUID", "")), []).append(path)
    if len(series) == 1 and not radiographs:
        return [list(files)]
    return sorted([*series.values(), *radiographs, *([path] for path in unknown)])


def header_of(path: Path) -> pydicom.Dataset | None:
    """The attributes that say to whom and to which image a file belongs; None if it is not DICOM, or damaged."""
    try:
        with path.open("rb") as file, pydicom.config.disable_value_validation():
            if not begins_as_dicom(file.read(HEAD_BYTES)):
                return None
            file.seek(0)
            header = read_partial(file, stop_when=lambda tag, *_: tag > LAST_TAG, force=True, specific_tags=TAGS)
            for name in NAMES:
                str(header.get(name))  # pydicom reads their text when it is asked for, so it fails here or not at all
            is_projection(header)
        return header
    except Exception:  # it is named when it is read
        return None


def read_series(
    files: Sequence[Path], flat: bool = False, pictures: bool = False, channels: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Voxels x y z in RAS order, float32, rescaled, and their 4 4 affine (mm) from the files of one series.

    A radiograph is a 2D image: pixels x y (column, row from the top), 3 3 affine. With `flat`, so is a single slice;
    with `pictures`, a single image that says nothing of a place in the patient, as secondary captures do not. With
    `channels`, voxels are c x y z or c x y, however many channels there are: grey, or red, green and blue, 0 to 255.
    """
    header = header_of(files[0]) if len(files) == 1 else None
    placed = header is None or bool(header.get("ImageOrientationPatient")) or int(header.get("NumberOfFrames") or 1) > 1
    if header is not None and (is_projection(header) or (pictures and not placed)):
        return read_projection(files[0], channels > 0)
    if flat and len(files) == 1 and len(slices := open_slices(files[0], channels > 0)) == 1:
        return slices[0].read().T, np.diag([*slices[0].spacing_mm[::-1], 1.0])
    series = open_series(files, channels > 0)
    first = series.slices[0]
    affine = np.eye(4)
    affine[:3, 0] = first.along * first.spacing_mm[1]  # along a row: from column to column
    affine[:3, 1] = first.down * first.spacing_mm[0]
    affine[:3, 2] = series.step
    affine[:3, 3] = first.position
    stored = {
        one.path: read_stored(one.path, one.syntax, colour=one.values.colour) for one in series.slices if one.frame == 0
    }
    pixels = [np.swapaxes(one.read(stored.get(one.path)), 0, 1) for one in series.slices]
    voxels = np.stack(pixels, axis=2)  # column, row, slice, and channel
    image = nib.as_closest_canonical(nib.Nifti1Image(voxels, affine))
    voxels = np.asarray(image.dataobj, dtype=np.float32)
    return np.moveaxis(voxels, 3, 0) if channels else voxels, np.asarray(image.affine)


def open_series(files: Sequence[Path], channels: bool = False) -> Series:
    """The slices of one series from their headers, no pixels read; ValueError if they make no volume.

    With `channels`, their pixels have channels, and may be colours.
    """
    slices = [one for path in files for one in open_slices(path, channels)]
    first = slices[0]
    if len(names := {one.series for one in slices}) > 1:
        raise ValueError(f"{len(names)} different values of series; expected one of each in a series")
    for one in slices:
        if not same(one.spacing_mm, first.spacing_mm):
            raise ValueError(
                f"different values of pixel spacing ({first.spacing_mm} and {one.spacing_mm} mm); expected one of each "
                "in a series"
            )
        if one.shape != first.shape:
            raise ValueError(f"different values of size ({first.shape} and {one.shape}); expected one in a series")
        if not np.allclose(one.along, first.along, atol=1e-3) or not np.allclose(one.down, first.down, atol=1e-3):
            raise ValueError(
                "slices of different orientation (a localizer inside the series?); expected one orientation"
            )
    normal = np.cross(first.along, first.down)
    kept = _without_duplicates(sorted(slices, key=lambda one: float(one.position @ normal)), normal)
    return Series(tuple(kept), _step(kept, normal), len(slices) - len(kept))


def same(lengths: Sequence[float], others: Sequence[float]) -> bool:
    """Whether lengths are equal but for the digits with which they were written."""
    return bool(np.allclose(lengths, others, rtol=SAME, atol=0))


def _without_duplicates(slices: list[Slice], normal: np.ndarray) -> list[Slice]:
    kept, apart = [slices[0]], min(1e-3, 0.01 * min(slices[0].spacing_mm))  # mm; pixels may be micrometres
    for candidate in slices[1:]:
        if abs((candidate.position - kept[-1].position) @ normal) > apart:
            kept.append(candidate)
        elif not np.array_equal(candidate.read(), kept[-1].read()):
            raise ValueError("two different slices at one position; expected one phase in a series")
    return kept


def _step(slices: list[Slice], normal: np.ndarray) -> np.ndarray:
    """The vector from slice to slice, mm."""
    if len(slices) < 2:
        raise ValueError("one slice; expected a series of at least two")
    gaps = np.diff([float(s.position @ normal) for s in slices])
    middle = float(np.median(gaps))
    if (gaps > 1.5 * middle).any():
        where = float(slices[int(gaps.argmax())].position @ normal)
        raise ValueError(
            f"a gap of {gaps.max():.2f} mm after {where:.2f} mm where slices are {middle:.2f} mm apart; "
            "slices are missing"
        )
    step = (slices[-1].position - slices[0].position) / (len(slices) - 1)
    if abs(step @ normal) < 0.99 * float(np.linalg.norm(step)):
        raise ValueError("slices are shifted against each other (gantry tilt); resample the series first")
    if np.abs(gaps - middle).max() > 0.1 * middle:
        raise ValueError(f"slices lie {gaps.min():.2f} to {gaps.max():.2f} mm apart; expected one distance")
    line = slices[0].position + np.arange(len(slices))[:, None] * step
    aside = np.abs(np.stack([s.position for s in slices]) - line).max()
    if aside > 0.1 * middle:
        raise ValueError(f"a slice is shifted {aside:.2f} mm away from the line of the others; expected one line")
    return step
