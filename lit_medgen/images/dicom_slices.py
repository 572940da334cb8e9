"""DICOM files as slices: every file of a classic series is one, every frame of an enhanced multi-frame file is one.

Every fault is a ValueError that names the file and says what was found and expected. Only geometry and intensity tags
are read; identifying tags never leave this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.pixels import apply_color_lut, get_decoder, pixel_array
from pydicom.uid import UID

from lit_medgen.errors import describe
from lit_medgen.images import begins_as_dicom
from lit_medgen.images.dicom_values import PALETTE, Get, Values, values_of

MAX_PIXELS = 64_000_000
MAX_VOXELS = 2**29
"""Of all frames of a file: 2 GiB as float32."""
DEFLATED, HEAD_BYTES = b"1.2.840.10008.1.2.1.99", 2048
DICOM_TO_RAS = np.diag([-1.0, -1.0, 1.0])  # DICOM's x runs to the left and y to the back
PROJECTIONS = ("CR", "DX", "IO", "MG", "PX", "RF", "RG", "XA")
"""Modalities of radiographs."""
PROJECTION_CLASSES = tuple(f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("1", "1.1", "1.1.1", "1.2", "1.2.1", "1.3"))
"""SOP classes of radiographs, for files that do not say their modality: CR, DX, mammograms, teeth."""
MACROS = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
)
"""Where frames of an enhanced file have their position, orientation, spacing and rescale, by frame or shared by all."""
DECODER = 'pip install "lit_medgen[dicom]"'


@dataclass(frozen=True, eq=False)
class Slice:
    """The header of one DICOM slice, with the geometry of its pixels.

    Attributes:
        path: the file.
        frame: its number in a multi-frame file, from 0; None: the file is the slice.
        shape: rows and columns.
        along: unit vector along a row, RAS.
        down: unit vector down a column, RAS.
        position: centre of the first pixel, mm, RAS.
        spacing_mm: between rows, between columns.
        thickness_mm: of the slice; NaN where it is not said.
        series: UID.
        values: from stored pixels to values.
        syntax: UID of how the file is written.
    """

    path: Path
    frame: int | None
    shape: tuple[int, int]
    along: np.ndarray
    down: np.ndarray
    position: np.ndarray
    spacing_mm: tuple[float, float]
    thickness_mm: float
    series: str
    values: Values
    syntax: str

    def read(self, frames: np.ndarray | None = None) -> np.ndarray:
        """Pixels rows columns, float32, rescaled; padding becomes the smallest other value. ValueError if damaged.

        Rows columns c of a file that is read with channels; colours are red, green and blue from 0 to 255. `frames` is
        what `read_stored` gives of all frames of the file, so that it is not read again for each.
        """
        colour = self.values.colour
        stored = read_stored(self.path, self.syntax, self.frame, colour) if frames is None else frames[self.frame]
        if stored.shape != (*self.shape, 3)[: 3 if colour else 2]:
            raise ValueError(
                f"{self.path.name}: pixels of shape {stored.shape}; expected one {'colour' if colour else 'grey'} slice"
            )
        try:
            return self.values(stored)
        except ValueError as error:
            raise ValueError(f"{self.path.name}: {error}") from error


def open_slices(path: Path, channels: bool = False) -> list[Slice]:
    """The headers of all slices in a file, no pixels read; ValueError if it lacks what a slice needs.

    With `channels`, their pixels have channels, and may be colours.
    """
    data = read_dataset(path, stop_before_pixels=True)
    with _reading(path):
        return _slices(path, data, channels)


def read_projection(path: Path, channels: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Pixels x y of a radiograph (column, row from the top), float32, and its 3 3 affine, mm; c x y with `channels`.

    Without a pixel spacing, of the patient or of the detector, the affine says 1 mm.
    """
    data = read_dataset(path, stop_before_pixels=True)
    with _reading(path):
        get = _getter(data)
        shape = _shape(get)
        names = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
        spacing_mm = _spacing_mm(next((get(name) for name in names if get(name)), (1.0, 1.0)))
        values = values_of(get, projection=True, channels=channels)
    zeros = np.zeros(3)
    only = Slice(path, None, shape, zeros, zeros, zeros, spacing_mm, float("nan"), "", values, syntax_of(data))
    return only.read().T, np.diag([spacing_mm[1], spacing_mm[0], 1.0])


def is_projection(data: pydicom.Dataset) -> bool:
    """Whether it is a radiograph, an image of its own without a place in the patient."""
    known = data.get("Modality") in PROJECTIONS or data.get("SOPClassUID") in PROJECTION_CLASSES
    single = int(data.get("NumberOfFrames") or 1) == 1
    return known and single and not data.get("ImageOrientationPatient")


def read_dataset(path: Path, stop_before_pixels: bool = False) -> pydicom.Dataset:
    """A file's content; ValueError if it cannot be read."""
    with _reading(path):
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        if DEFLATED in head:  # pydicom inflates it whatever it becomes
            raise ValueError("it is deflated as a whole; expected another transfer syntax")
        if not begins_as_dicom(head):
            raise ValueError("it is no DICOM file; expected the letters DICM after 128 bytes, or an element of group 8")
        return pydicom.dcmread(path, stop_before_pixels=stop_before_pixels, force=True)


def read_stored(path: Path, syntax: str, frame: int | None = None, colour: str = "") -> np.ndarray:
    """Pixels as they are stored, rows columns, of a frame or of the file (all its frames, if it has several, first).

    Of an image with that photometric interpretation of `colour` rows columns 3: red, green and blue, 0 to 255.
    """
    with _reading(path):
        _require_decoder(UID(syntax))
        stored = pixel_array(path, index=frame, transfer_syntax_uid=syntax)  # YBR becomes RGB
        if not colour:
            return stored
        data = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        bits = int(data.get("BitsStored", 8))
        if colour == PALETTE:
            stored = apply_color_lut(stored, data)
            bits = 8 * stored.itemsize
        return (stored * np.float32(255 / (2**bits - 1))).astype(np.float32)


def syntax_of(data: pydicom.Dataset) -> str:
    """UID of how a file is written; of one without such a header, as it was read."""
    if known := data.file_meta.get("TransferSyntaxUID"):
        return str(known)
    implicit, little = data.original_encoding
    if not little:
        return str(pydicom.uid.ExplicitVRBigEndian)
    return str(pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Inside, values are not validated (the warning would print them, and some name people); ValueError for any fault.

    pydicom lets out whatever its parts raise, and reads an attribute's text only when it is asked for it.
    """
    try:
        with pydicom.config.disable_value_validation():
            yield
    except Exception as error:
        raise ValueError(f"{path.name} cannot be read as a DICOM slice ({describe(error)})") from error


def _require_decoder(syntax: UID) -> None:
    decoder = get_decoder(syntax)  # NotImplementedError names a syntax that nothing can decode
    if not decoder.is_available:
        ships = any(needed.startswith("gdcm") for needed in decoder.missing_dependencies)
        remedy = f"run `{DECODER}`" if ships else "convert it to an uncompressed one first"
        raise ValueError(f"its pixels are compressed ({syntax.name}) and no decoder is installed; {remedy}")


def _slices(path: Path, data: pydicom.Dataset, channels: bool) -> list[Slice]:
    num_frames = int(data.get("NumberOfFrames", 1) or 1)
    frames = data.get("PerFrameFunctionalGroupsSequence")
    rows, columns = _shape(_getter(data))
    if num_frames * rows * columns > MAX_VOXELS:
        raise ValueError(f"it claims {num_frames} frames of {rows} x {columns} pixels; expected {MAX_VOXELS:,} at most")
    if frames is None:
        if num_frames != 1:
            raise ValueError(f"{num_frames} frames without functional groups; expected a position for each")
        return [_slice(path, None, _getter(data), data, channels)]
    if len(frames) != num_frames:
        raise ValueError(f"{num_frames} frames, but functional groups of {len(frames)}; expected one for each")
    shared = (data.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    slices = []
    for number, frame in enumerate(frames):
        macros = [group[macro][0] for group in (frame, shared) for macro in MACROS if group.get(macro)]
        slices.append(_slice(path, number if num_frames > 1 else None, _getter(*macros, data), data, channels))
    return slices


def _getter(*parts: pydicom.Dataset) -> Get:
    """Looks an attribute up in the first part that has it, not empty."""

    def get(name: str, default: Any = None) -> Any:
        for part in parts:
            value = part.get(name)
            if value is not None and value != "":
                return value
        return default

    return get


def _shape(get: Get) -> tuple[int, int]:
    shape = int(get("Rows", 0)), int(get("Columns", 0))
    if shape[0] * shape[1] > MAX_PIXELS:
        raise ValueError(f"{shape[0]} x {shape[1]} pixels; expected at most {MAX_PIXELS:,}")
    if min(shape) < 1:
        raise ValueError(f"{shape[0]} rows and {shape[1]} columns; expected an image")
    return shape


def _spacing_mm(written: Any) -> tuple[float, float]:
    spacing_mm = (float(written[0]), float(written[1]))
    if not min(spacing_mm) > 0 or not np.isfinite(spacing_mm).all():
        raise ValueError(f"pixel spacing {spacing_mm}; expected finite numbers above 0")
    return spacing_mm


def _slice(path: Path, frame: int | None, get: Get, data: pydicom.Dataset, channels: bool) -> Slice:
    geometry = ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing")
    if missing := [name for name in geometry if not get(name)]:
        raise ValueError(f"no {' and no '.join(missing)}; expected a slice with a place in the patient")
    orientation, position = (np.array(get(name), dtype=float) for name in geometry[:2])
    if orientation.shape != (6,) or position.shape != (3,):
        raise ValueError("no orientation or position; expected six and three numbers")
    spacing_mm = _spacing_mm(get("PixelSpacing"))
    if not np.isfinite([*orientation, *position]).all():
        raise ValueError(f"orientation {orientation}, position {position}; expected finite numbers")
    axes = orientation.reshape(2, 3)
    if not np.abs(axes @ axes.T - np.eye(2)).max() < 1e-2:
        raise ValueError(f"orientation {orientation}; expected two unit vectors at a right angle")
    along, down = axes @ DICOM_TO_RAS
    thickness_mm = float(get("SliceThickness", float("nan")))
    uid, values = str(get("SeriesInstanceUID", "")), values_of(get, projection=False, channels=channels)
    position = position @ DICOM_TO_RAS
    return Slice(
        path, frame, _shape(get), along, down, position, spacing_mm, thickness_mm, uid, values, syntax_of(data)
    )
