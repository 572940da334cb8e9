"""DICOM series in: slices ordered by position along the normal, never by file name or instance number.

Every fault is a ValueError that says what was found and expected; the caller adds the folder. Only geometry and
intensity tags are read; identifying tags never leave this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom

MAX_PIXELS = 64_000_000
DICOM_TO_RAS = np.diag([-1.0, -1.0, 1.0])  # DICOM's x runs to the left and y to the back


@dataclass(frozen=True)
class _Slice:
    pixels: np.ndarray  # rows columns, rescaled
    rows: np.ndarray  # unit vector along a row, RAS
    columns: np.ndarray  # unit vector down a column, RAS
    position: np.ndarray  # centre of the first pixel, mm, RAS
    spacing: tuple[float, float]  # between rows, between columns, mm
    series: str


def read_series(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Voxels x y z in RAS order, float32, rescaled, and their 4 4 affine (mm) from the files of one series."""
    slices = [_read(path) for path in files]
    first = slices[0]
    for name in ("series", "spacing"):
        if len(found := {getattr(s, name) for s in slices}) > 1:
            raise ValueError(f"{len(found)} different values of {name}; expected one series with one pixel spacing")
    if len({s.pixels.shape for s in slices}) > 1:
        raise ValueError("slices of different sizes; expected one size")
    if any(
        not np.allclose(s.rows, first.rows, atol=1e-3) or not np.allclose(s.columns, first.columns, atol=1e-3)
        for s in slices
    ):
        raise ValueError("slices of different orientation (a localizer inside the series?); expected one orientation")
    normal = np.cross(first.rows, first.columns)
    slices = _without_duplicates(sorted(slices, key=lambda s: float(s.position @ normal)), normal)
    step = _step(slices, normal)
    affine = np.eye(4)
    affine[:3, 0] = first.rows * first.spacing[1]  # along a row: from column to column
    affine[:3, 1] = first.columns * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = slices[0].position
    voxels = np.stack([s.pixels.T for s in slices], axis=-1)  # column, row, slice
    return _canonical(voxels, affine)


def _read(path: Path) -> _Slice:
    try:
        return _slice(pydicom.dcmread(path))
    except Exception as error:  # pydicom lets out whatever its parts raise
        raise ValueError(f"{path.name} cannot be read as a DICOM slice ({error})") from error


def _slice(data: pydicom.Dataset) -> _Slice:
    if data.get("Rows", 0) * data.get("Columns", 0) > MAX_PIXELS or int(data.get("NumberOfFrames", 1) or 1) != 1:
        raise ValueError("too many pixels or frames; expected one slice in each file")
    pixels = data.pixel_array.astype(np.float32)
    if pixels.ndim != 2:
        raise ValueError(f"pixels of shape {pixels.shape}; expected one grey slice")
    orientation = np.array(data.ImageOrientationPatient, dtype=float)
    position = np.array(data.ImagePositionPatient, dtype=float)
    spacing = (float(data.PixelSpacing[0]), float(data.PixelSpacing[1]))
    if orientation.shape != (6,) or position.shape != (3,):
        raise ValueError("no orientation or position; expected six and three numbers")
    if not min(spacing) > 0 or not np.isfinite([*orientation, *position, *spacing]).all():
        raise ValueError(f"pixel spacing {spacing}, position {position}; expected finite numbers, spacing above 0")
    rescaled = pixels * float(data.get("RescaleSlope", 1) or 1) + float(data.get("RescaleIntercept", 0) or 0)
    if not np.isfinite(rescaled).all():
        raise ValueError("rescaled pixels that are not finite")
    rows, columns = orientation[:3] @ DICOM_TO_RAS, orientation[3:] @ DICOM_TO_RAS
    return _Slice(rescaled, rows, columns, position @ DICOM_TO_RAS, spacing, str(data.get("SeriesInstanceUID", "")))


def _without_duplicates(slices: list[_Slice], normal: np.ndarray) -> list[_Slice]:
    kept = [slices[0]]
    for candidate in slices[1:]:
        if abs((candidate.position - kept[-1].position) @ normal) > 1e-3:
            kept.append(candidate)
        elif not np.array_equal(candidate.pixels, kept[-1].pixels):
            raise ValueError("two different slices at one position; expected one phase in a series")
    return kept


def _step(slices: list[_Slice], normal: np.ndarray) -> np.ndarray:
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


def _canonical(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import nibabel as nib

    image = nib.as_closest_canonical(nib.Nifti1Image(voxels, affine))
    return np.asarray(image.dataobj, dtype=np.float32), np.asarray(image.affine)
