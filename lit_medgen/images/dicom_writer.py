"""DICOM out: single-frame slices that say in several places that they are synthetic, or made from a patient's image.

Some anonymisers strip (0008,001C) Synthetic Data, so name, description, image type, comment and contributing equipment
say it too. Nothing is invented: what only a scanner could know (voltage, echo time) is empty or absent, and there is no
source image. Secondary capture, the default, needs none of it; "ct" and "mr" are for readers that take only those.
What was made from a patient's image is not called synthetic: it is derived, and a person could be known by it.
No claim of de-identification is made: whether a model repeats what it was trained on is not seen in a header.
"""

from __future__ import annotations

import io
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, SecondaryCaptureImageStorage
from pydicom.valuerep import format_number_as_ds

from lit_medgen import __version__
from lit_medgen.files import write_atomically
from lit_medgen.images.dicom_slices import DICOM_TO_RAS
from lit_medgen.images.origin import STATEMENTS, Origin

Kind = Literal["sc", "ct", "mr"]
SOP_CLASSES = {"sc": SecondaryCaptureImageStorage, "ct": CTImageStorage, "mr": MRImageStorage}
MODALITIES = {"sc": "OT", "ct": "CT", "mr": "MR"}
FRESH = "(fresh)"
PATIENTS: dict[Origin, str] = {"synthetic": "SYN", "reconstruction": "REC", "completion": "COM"}
"""What a Patient ID begins with."""
PREAMBLE = bytes(128)  # anything else here may make the file a program at the same time (CVE-2019-11687)
INT16 = np.iinfo(np.int16)
STEPS = INT16.max - INT16.min
UID = r"(?=.{1,64}$)(0|[1-9]\d*)(\.(0|[1-9]\d*))*"
FORMS = {
    "study_uid": UID,
    "series_uid": UID,
    "frame_uid": UID,
    "patient_id": r"[A-Za-z0-9._-]{1,48}",
    "description": r"[^\\\x00-\x1f\x7f]{0,54}",
    "model_hash": r"[0-9a-f]{0,64}",
    "date": r"(\d{8})?",
}
MAX_SKEW = 1e-4  # cosine between two axes; 0.05 mm over 500 mm


def fresh_uid() -> str:
    """A UID that nothing else has: 2.25 and a random UUID (PS3.5, B.2), at most 44 characters."""
    return f"2.25.{uuid.uuid4().int}"


@dataclass(frozen=True)
class Series:
    """What all slices of a written series share. ValueError for what DICOM cannot hold.

    Attributes:
        study_uid: Study Instance UID, fresh unless given, as the next two are.
        series_uid: Series Instance UID.
        frame_uid: Frame of Reference UID.
        patient_id: letters, digits and "._-", at most 48; fresh unless given. The name is SYNTHETIC^ (or
            RECONSTRUCTION^, COMPLETION^) and this.
        origin: what the image was made from; all but "synthetic" were made from a patient's image.
        kind: secondary capture, or the class of CT or MR images. Values of "ct" are HU.
        description: Series Description, at most 54 characters (49 of a reconstruction); SYNTHETIC, or what it is, is
            put before it.
        number: Series Number.
        model_hash: SHA-256 of the checkpoint; its first 32 digits stand in Software Versions.
        head: the face can be seen: a head that was not defaced or stripped.
        date: Study Date, YYYYMMDD, or empty.
        slope: a value is slope * stored + intercept; `write_series` sets both.
        intercept: the value that 0 stands for.
        thickness_mm: from slice to slice; None where it is unknown. `write_series` sets it.
        window: the values shown as black and white; None: the lowest and the highest.
    """

    study_uid: str = field(default_factory=fresh_uid)
    series_uid: str = field(default_factory=fresh_uid)
    frame_uid: str = field(default_factory=fresh_uid)
    patient_id: str = FRESH
    origin: Origin = "synthetic"
    kind: Kind = "sc"
    description: str = ""
    number: int = 1
    model_hash: str = ""
    head: bool = False
    date: str = ""
    slope: float = 1.0
    intercept: float = 0.0
    thickness_mm: float | None = None
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.kind not in SOP_CLASSES:
            raise ValueError(f"kind {self.kind!r}; expected one of {', '.join(SOP_CLASSES)}")
        if self.origin not in PATIENTS:
            raise ValueError(f"origin {self.origin!r}; expected one of {', '.join(PATIENTS)}")
        if self.patient_id == FRESH:
            object.__setattr__(self, "patient_id", f"{PATIENTS[self.origin]}-{uuid.uuid4().hex[:12]}")
        for name, form in FORMS.items():
            if not re.fullmatch(form, value := getattr(self, name), re.ASCII):
                raise ValueError(f"{name} {value!r}; expected the form {form}")
        if len(described := _described(self)) > 64:
            raise ValueError(f"description {described!r} of {len(described)} characters; expected at most 64")
        if not 0 <= self.number < 2**31:
            raise ValueError(f"number {self.number}; expected 0 to {2**31 - 1}")
        if not np.isfinite([self.slope, self.intercept, *(self.window or ())]).all() or self.slope == 0:
            raise ValueError(f"slope {self.slope}, intercept {self.intercept}, window {self.window}; expected finite")


def write_series(folder: Path, voxels: np.ndarray, affine: np.ndarray, series: Series) -> list[Path]:
    """Writes slices along the last axis as 1-001.dcm, 1-002.dcm, ... (series number, slice); returns them.

    Whole numbers that span at most 16 bits come back as they were; of others, the range is cut into 65,535 steps.
    Colours are written as they are, 8 bits of each.

    Args:
        folder: where to; made unless it is there.
        voxels: x y z, real numbers of any type; x y z 3, uint8: red, green and blue, of kind "sc". Or x y (x y 3), a
            picture: kind "sc", one file, x to the right and y down as in a PNG, without position and orientation,
            since its world has no patient.
        affine: 4 4 (3 3 of a picture), voxel to world in mm, RAS; axes at right angles.
        series: what the slices share.

    Raises:
        ValueError: voxels that are not finite, shapes that do not fit, an affine that DICOM cannot hold.
    """
    is_colour = voxels.ndim == len(affine)
    _check(voxels[..., 0] if is_colour else voxels, affine, series)
    if is_colour and (voxels.dtype != np.uint8 or voxels.shape[-1] != 3 or series.kind != "sc"):
        raise ValueError(
            f"{voxels.dtype} colours of {voxels.shape[-1]} channels, kind {series.kind!r}; expected uint8, 3"
        )
    stored, slope, intercept = (voxels, 1.0, 0.0) if is_colour else _stored(voxels)
    window = series.window or (float(voxels.min()), float(voxels.max()))
    series = replace(series, slope=slope, intercept=intercept, window=window)
    spacing = np.linalg.norm(affine[:-1, :-1], axis=0)
    in_plane = (float(spacing[1]), float(spacing[0]))  # between rows, between columns
    if len(affine) == 3:
        datasets = [_picture(series, stored.swapaxes(0, 1), in_plane, 1, None)]
    else:
        series = replace(series, thickness_mm=float(spacing[2]))
        stored, affine = _as_shown(stored, affine)
        lps = np.diag([*DICOM_TO_RAS.diagonal(), 1]) @ affine
        orientation = (lps[:3, :2] / spacing[:2]).T.ravel()
        datasets = [
            slice_dataset(
                series, stored[:, :, k].swapaxes(0, 1), lps[:3, 3] + k * lps[:3, 2], orientation, in_plane, k + 1
            )
            for k in range(voxels.shape[2])
        ]
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{series.number}-{data.InstanceNumber:03}.dcm" for data in datasets]
    for path, data in zip(paths, datasets, strict=True):
        write_slice(path, data)
    return paths


def _as_shown(stored: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows to the patient's left or down, columns to the back or down, since plain viewers show pixels as they lie."""
    turn = np.eye(4)
    for axis in (0, 1):
        world = int(np.abs(affine[:3, axis]).argmax())
        if affine[world, axis] > 0:
            stored = np.flip(stored, axis)
            turn[axis, axis], turn[axis, 3] = -1, stored.shape[axis] - 1
    return stored, affine @ turn


def write_slice(path: Path, dataset: Dataset) -> None:
    """Writes a slice whole or not at all: Explicit VR Little Endian, the preamble all zero."""
    content = io.BytesIO()
    dataset.save_as(content, implicit_vr=False, little_endian=True, enforce_file_format=True)
    write_atomically(path, PREAMBLE + content.getvalue()[len(PREAMBLE) :])


def slice_dataset(
    series: Series,
    pixels: np.ndarray,
    position_mm: Sequence[float] | np.ndarray,
    orientation: Sequence[float] | np.ndarray,
    spacing_mm: tuple[float, float],
    instance: int,
    sop_uid: str | None = None,
) -> Dataset:
    """One slice with its place in the patient.

    Args:
        series: what it shares with others.
        pixels: rows columns, int16; `series` says what values they stand for. Or rows columns 3, uint8.
        position_mm: centre of the first pixel: left, posterior, superior (LPS).
        orientation: unit vectors along a row and down a column, LPS: six numbers.
        spacing_mm: between rows, between columns.
        instance: Instance Number.
        sop_uid: SOP Instance UID; fresh unless given.

    Raises:
        ValueError: of another type, or a geometry that is none.
    """
    position, directions = np.asarray(position_mm, dtype=float), np.asarray(orientation, dtype=float)
    if position.shape != (3,) or directions.shape != (6,) or not np.isfinite(position).all():
        raise ValueError(f"position {position}, orientation {directions}; expected three and six finite numbers")
    gram = directions.reshape(2, 3) @ directions.reshape(2, 3).T
    if not np.abs(gram - np.eye(2)).max() <= MAX_SKEW:
        raise ValueError(f"orientation {directions}; expected two unit vectors at a right angle")
    data = _picture(series, pixels, spacing_mm, instance, sop_uid)
    data.FrameOfReferenceUID, data.PositionReferenceIndicator = series.frame_uid, ""
    data.ImagePositionPatient = [_decimal(p) for p in position]
    data.ImageOrientationPatient = [_decimal(d) for d in directions]
    data.SliceThickness = None if series.thickness_mm is None else _decimal(series.thickness_mm)
    if series.thickness_mm is not None:
        data.SpacingBetweenSlices = data.SliceThickness
    return data


def _picture(
    series: Series, pixels: np.ndarray, spacing_mm: tuple[float, float], instance: int, sop_uid: str | None
) -> Dataset:
    """Pixels (rows columns, or rows columns 3) and everything but their place."""
    is_known = (str(pixels.dtype), pixels.shape[2:]) in (("int16", ()), ("uint8", (3,)))
    if pixels.ndim < 2 or not is_known or not 0 < min(pixels.shape) <= max(pixels.shape) < 2**16:
        raise ValueError(f"pixels {pixels.dtype} of shape {pixels.shape}; expected int16, rows columns, below 65536")
    if not 0 < min(spacing_mm) <= max(spacing_mm) < np.inf:
        raise ValueError(f"spacing {spacing_mm} mm; expected two finite numbers above 0")
    data = Dataset()
    data.SpecificCharacterSet = "ISO_IR 192"
    data.SOPClassUID, data.SOPInstanceUID = SOP_CLASSES[series.kind], sop_uid or fresh_uid()
    data.InstanceNumber = instance
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    _add_origin(data, series)
    _add_kind(data, series)
    _add_pixels(data, pixels, series)
    data.PixelSpacing = [_decimal(s) for s in spacing_mm]
    return data


def _add_origin(data: Dataset, series: Series) -> None:
    """Patient, study, series and equipment: nobody, none, and the software that made them."""
    software = [f"lit_medgen {__version__}", *([f"model {series.model_hash[:32]}"] if series.model_hash else [])]
    synthetic = series.origin == "synthetic"
    data.PatientName, data.PatientID = f"{series.origin.upper()}^{series.patient_id}", series.patient_id
    data.PatientBirthDate = data.PatientSex = ""
    data.StudyInstanceUID, data.SeriesInstanceUID = series.study_uid, series.series_uid
    data.StudyDate, data.StudyTime, data.StudyID = series.date, "", ""
    data.ReferringPhysicianName = data.AccessionNumber = ""
    data.Modality, data.SeriesNumber = MODALITIES[series.kind], series.number
    data.SeriesDescription, data.ImageComments = _described(series), STATEMENTS[series.origin]
    if synthetic:
        data.SyntheticData = "YES"
    else:  # neither YES nor NO, which is "faithful to what was acquired", would be true
        data.DerivationDescription = STATEMENTS[series.origin]
    data.Manufacturer, data.SoftwareVersions = "lit_medgen", software
    purpose, equipment = Dataset(), Dataset()
    purpose.CodingSchemeDesignator = "DCM"
    code = ("109100", "Synthesizing Equipment") if synthetic else ("109102", "Processing Equipment")  # CID 7005
    purpose.CodeValue, purpose.CodeMeaning = code
    equipment.PurposeOfReferenceCodeSequence = [purpose]
    equipment.Manufacturer, equipment.SoftwareVersions = "lit_medgen", software
    data.ContributingEquipmentSequence = [equipment]
    data.BurnedInAnnotation = "NO"
    if series.head:
        data.RecognizableVisualFeatures = "YES"


def _add_kind(data: Dataset, series: Series) -> None:
    """What the image class asks for; empty wherever only a scanner could know it."""
    kind = series.kind
    if kind == "sc":
        data.ImageType = ["DERIVED", "SECONDARY"]
        data.ConversionType = "SYN" if series.origin == "synthetic" else "WSD"  # synthetic image, or workstation
        data.PatientOrientation = ""
        return
    data.ImageType = ["DERIVED", "SECONDARY", "AXIAL" if kind == "ct" else "OTHER"]
    data.PatientPosition = ""
    if kind == "ct":
        data.KVP = data.AcquisitionNumber = None
    else:
        data.ScanningSequence, data.SequenceVariant = "RM", "NONE"  # must not be empty: research mode, nothing special
        data.ScanOptions = data.MRAcquisitionType = ""
        data.RepetitionTime = data.EchoTime = data.EchoTrainLength = None


def _add_pixels(data: Dataset, pixels: np.ndarray, series: Series) -> None:
    data.Rows, data.Columns = pixels.shape[:2]
    if pixels.ndim == 3:
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
        content = np.ascontiguousarray(pixels).tobytes()
        data.PixelData = content + b"\0" * (len(content) % 2)
        return
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.PixelData = np.ascontiguousarray(pixels, dtype="<i2").tobytes()
    data.RescaleSlope, data.RescaleIntercept = _decimal(series.slope), _decimal(series.intercept)
    data.RescaleType = "HU" if series.kind == "ct" else "US"  # US: no unit
    ends = [series.slope * float(pixel) + series.intercept for pixel in (pixels.min(), pixels.max())]
    low, high = sorted(series.window or ends)
    # PS3.3, C.11.2.1.2.1: values from centre - 0.5 - (width - 1) / 2 on are not black; a width below 1 is forbidden.
    data.WindowCenter, data.WindowWidth = _decimal((low + high) / 2 + 0.5), _decimal(high - low + 1)


def _described(series: Series) -> str:
    """Series Description: what the image is before all else."""
    mark, description = series.origin.upper(), series.description
    if not description and series.origin != "synthetic":
        description = "derived from a patient's image"
    return description if description.startswith(mark) else f"{mark} {description}".strip()


def _decimal(value: float) -> str:
    """A number in the 16 characters of a decimal string: ten digits or more, one part in 10^10."""
    return format_number_as_ds(float(value) + 0.0)  # -0.0 becomes 0.0


def _check(voxels: np.ndarray, affine: np.ndarray, series: Series) -> None:
    dim = voxels.ndim
    if dim not in (2, 3) or affine.shape != (dim + 1, dim + 1) or not voxels.size:
        raise ValueError(
            f"voxels of shape {voxels.shape}, affine of shape {affine.shape}; expected x y z and 4 4, or x y and 3 3"
        )
    if dim == 2 and series.kind != "sc":
        raise ValueError(f"a picture x y of kind {series.kind!r}; expected 'sc', since it has no place in a patient")
    if voxels.dtype.kind not in "biuf" or not np.isfinite(voxels).all():
        raise ValueError(f"{voxels.dtype} voxels that are not finite numbers; expected finite real numbers")
    axes = affine[:-1, :-1]
    if not np.isfinite(affine).all() or not (spacing := np.linalg.norm(axes, axis=0)).min() > 0:
        raise ValueError("the affine is singular or not finite; expected a voxel-to-world matrix")
    if np.abs((axes / spacing).T @ (axes / spacing) - np.eye(dim)).max() > MAX_SKEW:
        raise ValueError("the axes of the affine are not at right angles; resample the image first")


def _stored(voxels: np.ndarray) -> tuple[np.ndarray, float, float]:
    """int16, slope and intercept: exact for whole numbers that span 16 bits at most, else the whole range used.

    The slope is the one that is written, so that rounding it to a decimal string costs no accuracy.
    """
    values = voxels.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if high - low <= STEPS and (values == np.rint(values)).all():
        slope, intercept = 1.0, 0.0 if INT16.min <= low and high <= INT16.max else low - INT16.min
    else:
        slope = float(_decimal((high - low) / STEPS)) or 1.0  # all the same: any slope will do
        intercept = float(_decimal(low - slope * INT16.min))
    return np.rint((values - intercept) / slope).clip(INT16.min, INT16.max).astype(np.int16), slope, intercept
