"""Real nodules in the form of LIDC-IDRI's download: boxes cut from its scans, as DICOM slices with the XML of a reader.

The boxes are a public selection: HU and mask of 178 nodules of 144 patients as NIfTI files, whose table has the
ratings by majority. Slices become 64 x 64 pixels of their own spacing: what a box lacks is -1024 HU, which maps by
bands call background, and of a larger box the middle of the nodule is kept. Outlines give the mask back exactly; of a
nodule that is itself as large as a slice the outermost pixels are left for its outline.

    python -m benchmarks.nodule_boxes --out data/lidc_nodules       # then: --data configs/data/lidc_nodules.yaml

LIDC-IDRI is CC BY 3.0 (Armato S.G. III et al. 2015, doi:10.7937/K9/TCIA.2015.LO9QL9SX), and so is what this writes.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from data_modules.lidc.annotations import HIGHEST
from data_modules.phantoms.lidc_database import Annotation, Scan
from data_modules.phantoms.lidc_tree import COLLECTION
from data_modules.phantoms.lidc_xml import message_of, write_xml
from data_modules.phantoms.outlines import outlines_of
from lit_medgen.files import Outputs
from lit_medgen.images.dicom_slices import DICOM_TO_RAS
from lit_medgen.images.dicom_writer import Series, slice_dataset, write_slice
from lit_medgen.seeds import mix

SOURCE = "shared/data/lungct/lidc_nodules"
PADDING_HU, INTERCEPT = -1024, -1024
COMMENT = "Box around a nodule, cut from a scan of LIDC-IDRI (CC BY 3.0) and padded; its outlines are those of a mask."


@dataclass(frozen=True, eq=False)
class Box:
    """A nodule as DICOM shows it."""

    image: np.ndarray  # rows columns slices, HU
    mask: np.ndarray  # rows columns slices, bool
    affine: np.ndarray  # column, row and slice to world, mm, LPS, 4 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--boxes", default=SOURCE, help="folder with image/, mask/ and nodules.csv")
    parser.add_argument("--size", type=int, default=64, help="rows and columns of a slice")
    options = parser.parse_args()
    num, num_slices = write_boxes(Path(options.boxes), Path(options.out), options.size)
    print(f"{num} nodules, {num_slices} slices in {options.out}")


def write_boxes(boxes: Path, out: Path, size: int) -> tuple[int, int]:
    """Writes every nodule of the table; returns their number and that of their slices."""
    outputs = Outputs(out, "nodule-boxes", [COLLECTION])
    outputs.claim()
    with (boxes / "nodules.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    num_slices = 0
    for row in rows:
        box = fit(read_box(boxes, row["file"]), size)
        num_slices += box.image.shape[2]
        ratings = {name: int(row[f"{name[0].upper()}{name[1:]}_value"]) for name in HIGHEST}
        write_box(out / COLLECTION / row["patient_id"], row["patient_id"], row["file"], box, ratings)
    outputs.end()
    return len(rows), num_slices


def read_box(boxes: Path, name: str) -> Box:
    """A box as its NIfTI files have it."""
    image, mask = (nib.load(boxes / kind / name) for kind in ("image", "mask"))
    hu, inside = (np.asarray(file.dataobj).transpose(1, 0, 2) for file in (image, mask))
    lps = np.diag([*DICOM_TO_RAS.diagonal(), 1]) @ image.affine
    return Box(hu.astype(np.int16), inside > 0, lps)


def fit(box: Box, size: int) -> Box:
    """The box with so many rows and columns: padded evenly, or cut around the middle of the nodule."""
    first = [_first(box.mask.any(axis=(1 - axis, 2)), size) for axis in (0, 1)]
    shape = (size, size, box.image.shape[2])
    image, mask = np.full(shape, PADDING_HU, dtype=np.int16), np.zeros(shape, dtype=bool)
    ends = [(max(0, begin), min(whole, begin + size)) for begin, whole in zip(first, box.image.shape, strict=False)]
    outer = tuple(slice(*end) for end in ends)
    inner = tuple(slice(low - begin, high - begin) for (low, high), begin in zip(ends, first, strict=True))
    image[inner], mask[inner] = box.image[outer], box.mask[outer]
    mask[[0, -1]] = mask[:, [0, -1]] = False
    affine = box.affine.copy()
    affine[:3, 3] += box.affine[:3, :2] @ np.array(first[::-1])
    return Box(image, mask, affine)


def _first(there: np.ndarray, size: int) -> int:
    """The first row or column that is kept, below 0 where the box is padded; `there`: which hold the nodule."""
    if len(there) <= size:
        return -((size - len(there)) // 2)
    middle = np.flatnonzero(there)[[0, -1]].mean()
    return int(np.clip(round(middle - (size - 1) / 2), 0, len(there) - size))


def write_box(folder: Path, patient: str, name: str, box: Box, ratings: dict[str, int]) -> Path:
    """A series with its XML in a folder of its own, which is returned."""
    spacing = np.linalg.norm(box.affine[:3, :3], axis=0).round(6)  # NIfTI keeps it in single precision
    z_mm = tuple(float(box.affine[2, 3] + k * box.affine[2, 2]) for k in range(box.image.shape[2]))
    contours = [outlines_of(box.mask[:, :, k], z) for k, z in enumerate(z_mm)]
    scan = Scan(
        patient=patient,
        study_uid=_uid(name, "study"),
        series_uid=_uid(name, "series"),
        thickness_mm=float(spacing[2]),
        spacing_mm=float(spacing[0]),
        contrast=False,
        z_mm=z_mm,
        annotations=(Annotation("1", ratings, tuple(contour for layer in contours for contour in layer)),),
    )
    path = folder / scan.study_uid / scan.series_uid
    path.mkdir(parents=True, exist_ok=True)
    _write_slices(path, scan, box, name)
    write_xml(path / "001.xml", message_of(scan, [scan.annotations], lambda *parts: _uid(name, *parts), COMMENT))
    return path


def _write_slices(folder: Path, scan: Scan, box: Box, name: str) -> None:
    series = Series(
        study_uid=scan.study_uid,
        series_uid=scan.series_uid,
        frame_uid=_uid(name, "frame"),
        patient_id=scan.patient,
        kind="ct",
        date="20000101",
        intercept=INTERCEPT,
        thickness_mm=scan.thickness_mm,
    )
    directions = (box.affine[:3, :2] / scan.spacing_mm).T.ravel()
    for k in range(len(scan.z_mm)):
        position = box.affine[:3, 3] + k * box.affine[:3, 2]
        pixels = (box.image[:, :, k] - np.int16(INTERCEPT)).astype(np.int16)
        spacing = (scan.spacing_mm, scan.spacing_mm)
        data = slice_dataset(series, pixels, position, directions, spacing, k + 1, _uid(name, "slice", k))
        del data.SyntheticData, data.ContributingEquipmentSequence  # it was acquired from a patient
        data.PatientName, data.SeriesDescription, data.ImageComments = scan.patient, "box around a nodule", COMMENT
        write_slice(folder / f"1-{k + 1:03}.dcm", data)


def _uid(name: str, *parts: str | int) -> str:
    return f"2.25.{mix('nodule box', name, *parts)}"


if __name__ == "__main__":
    main()
