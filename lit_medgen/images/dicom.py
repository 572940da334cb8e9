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

from lit_medgen.errors import describe

MAX_PIXELS = 64_000_000
DEFLATED, HEAD_BYTES = b"1.2.840.10008.1.2.1.99", 2048
DICOM_TO_RAS = np.diag([-1.0, -1.0, 1.0])  # DICOM's x runs to the left and y to the back


@dataclass(frozen=True, eq=False)
class Slice:
    """The header of one slice.

    Attributes:
        path: the file.
        shape: rows and columns.
        along: unit vector along a row, RAS.
        down: unit vector down a column, RAS.
        position: centre of the first pixel, mm, RAS.
        spacing_mm: between rows, between columns.
        thickness_mm: of the slice; NaN where it is not said.
        series: UID.
    """

    path: Path
    shape: tuple[int, int]
    along: np.ndarray
    down: np.ndarray
    position: np.ndarray
    spacing_mm: tuple[float, float]
    thickness_mm: float
    series: str

    def read(self) -> np.ndarray:
        """Pixels rows columns, float32, rescaled; padding becomes the smallest other value. ValueError if damaged."""
        data = read_dataset(self.path)
        try:
            with pydicom.config.disable_value_validation():
                stored = data.pixel_array.astype(np.float32)
                slope, intercept = _number(data, "RescaleSlope", 1), _number(data, "RescaleIntercept", 0)
                padded = _padding(data, stored)
        except Exception as error:
            raise _unreadable(self.path, error) from error
        if stored.shape != self.shape:
            raise ValueError(f"{self.path.name}: pixels of shape {stored.shape}; expected one grey slice")
        if not slope > 0:
            raise ValueError(f"{self.path.name}: rescale slope {slope:g}; expected a number above 0")
        values = stored * slope + intercept
        if not np.isfinite(values).all():
            raise ValueError(f"{self.path.name}: rescaled pixels that are not finite")
        if padded.any() and not padded.all():
            values[padded] = values[~padded].min()
        return values


@dataclass(frozen=True, eq=False)
class Series:
    """Slices of one volume, each with a place of its own.

    Attributes:
        slices: in order along the normal.
        step: from slice to slice, mm, RAS.
        num_duplicates: files left out, since another has the same pixels at the same place.
    """

    slices: tuple[Slice, ...]
    step: np.ndarray
    num_duplicates: int


def read_series(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Voxels x y z in RAS order, float32, rescaled, and their 4 4 affine (mm) from the files of one series."""
    series = open_series(files)
    first = series.slices[0]
    affine = np.eye(4)
    affine[:3, 0] = first.along * first.spacing_mm[1]  # along a row: from column to column
    affine[:3, 1] = first.down * first.spacing_mm[0]
    affine[:3, 2] = series.step
    affine[:3, 3] = first.position
    voxels = np.stack([one.read().T for one in series.slices], axis=-1)  # column, row, slice
    return _canonical(voxels, affine)


def open_series(files: Sequence[Path]) -> Series:
    """The slices of one series from their headers, no pixels read; ValueError if they make no volume."""
    slices = [open_slice(path) for path in files]
    first = slices[0]
    for name, what in (("series", "series"), ("spacing_mm", "pixel spacing"), ("shape", "size")):
        if len(found := {getattr(one, name) for one in slices}) > 1:
            raise ValueError(f"{len(found)} different values of {what}; expected one of each in a series")
    if any(
        not np.allclose(one.along, first.along, atol=1e-3) or not np.allclose(one.down, first.down, atol=1e-3)
        for one in slices
    ):
        raise ValueError("slices of different orientation (a localizer inside the series?); expected one orientation")
    normal = np.cross(first.along, first.down)
    kept = _without_duplicates(sorted(slices, key=lambda one: float(one.position @ normal)), normal)
    return Series(tuple(kept), _step(kept, normal), len(slices) - len(kept))


def open_slice(path: Path) -> Slice:
    """The header of one slice; ValueError if it lacks what a slice needs."""
    data = read_dataset(path, stop_before_pixels=True)
    try:
        with pydicom.config.disable_value_validation():
            return _slice(path, data)
    except Exception as error:  # pydicom reads an attribute's text when it is asked for it
        raise _unreadable(path, error) from error


def read_dataset(path: Path, stop_before_pixels: bool = False) -> pydicom.Dataset:
    """A file's content; ValueError if it cannot be read.

    Values are not validated: the warning would print them, and some name people.
    """
    try:
        with path.open("rb") as file:
            if DEFLATED in file.read(HEAD_BYTES):  # pydicom inflates it whatever it becomes
                raise ValueError("it is deflated as a whole; expected another transfer syntax")
        with pydicom.config.disable_value_validation():
            return pydicom.dcmread(path, stop_before_pixels=stop_before_pixels)
    except Exception as error:  # pydicom lets out whatever its parts raise
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path.name} cannot be read as a DICOM slice ({describe(error)})")


def _slice(path: Path, data: pydicom.Dataset) -> Slice:
    shape = int(data.get("Rows", 0) or 0), int(data.get("Columns", 0) or 0)
    if shape[0] * shape[1] > MAX_PIXELS or int(data.get("NumberOfFrames", 1) or 1) != 1:
        raise ValueError("too many pixels or frames; expected one slice in each file")
    if min(shape) < 1:
        raise ValueError(f"{shape[0]} rows and {shape[1]} columns; expected an image")
    orientation = np.array(data.ImageOrientationPatient, dtype=float)
    position = np.array(data.ImagePositionPatient, dtype=float)
    spacing_mm = (float(data.PixelSpacing[0]), float(data.PixelSpacing[1]))
    if orientation.shape != (6,) or position.shape != (3,):
        raise ValueError("no orientation or position; expected six and three numbers")
    if not min(spacing_mm) > 0 or not np.isfinite([*orientation, *position, *spacing_mm]).all():
        raise ValueError(f"pixel spacing {spacing_mm}, position {position}; expected finite numbers, spacing above 0")
    axes = orientation.reshape(2, 3)
    if not np.abs(axes @ axes.T - np.eye(2)).max() < 1e-2:
        raise ValueError(f"orientation {orientation}; expected two unit vectors at a right angle")
    along, down = axes @ DICOM_TO_RAS
    thickness_mm = _number(data, "SliceThickness", float("nan"))
    uid = str(data.get("SeriesInstanceUID", ""))
    return Slice(path, shape, along, down, position @ DICOM_TO_RAS, spacing_mm, thickness_mm, uid)


def _number(data: pydicom.Dataset, name: str, default: float) -> float:
    """An attribute that may be missing or empty."""
    value = data.get(name)
    return default if value is None or value == "" else float(value)


def _padding(data: pydicom.Dataset, stored: np.ndarray) -> np.ndarray:
    """Where stored pixels stand for nothing: PixelPaddingValue, to PixelPaddingRangeLimit if there is one."""
    if data.get("PixelPaddingValue") is None:
        return np.zeros(stored.shape, dtype=bool)
    ends = [_padding_value(data, name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit") if name in data]
    padded: np.ndarray = (stored >= min(ends)) & (stored <= max(ends))
    return padded


def _padding_value(data: pydicom.Dataset, name: str) -> int:
    """As pixels are stored: some writers give a negative value its unsigned form."""
    value = int(data[name].value)
    signed = data.get("PixelRepresentation", 0) == 1
    return value - 2**16 if signed and value >= 2**15 else value


def _without_duplicates(slices: list[Slice], normal: np.ndarray) -> list[Slice]:
    kept = [slices[0]]
    for candidate in slices[1:]:
        if abs((candidate.position - kept[-1].position) @ normal) > 1e-3:
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


def _canonical(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import nibabel as nib

    image = nib.as_closest_canonical(nib.Nifti1Image(voxels, affine))
    return np.asarray(image.dataobj, dtype=np.float32), np.asarray(image.affine)
