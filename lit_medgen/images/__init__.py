"""Image files in and out: NIfTI, DICOM, PNG and figures, geometry kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lit_medgen.images.nifti import Form

DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
"""In small letters; many DICOM files have none."""


def read_image(
    path: Path | list[Path],
    form: Form = "agree",
    finite: bool = True,
    flat: bool = False,
    numbers: bool = False,
    channels: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and affine of a NIfTI, MGH, PNG or DICOM file, or of the files of a DICOM series.

    `form` and `finite` are those of `read_nifti`. In a data set of 2D images (`flat`) a single DICOM slice is one, and
    not a series that lacks the others. `numbers`: a label map, of whose PNG colours of a
    palette are numbers, and whose DICOM slice may be a picture without a place in the patient.
    `channels`: how many are expected of an image of several, see `read_nifti`; 0: one, colours are refused.

    Returns:
        voxels: x y z, or x y of a 2D image (column, row from the top); of channels c before these.
        affine: voxel to world, mm, 4 4, or 3 3 of a 2D image. Its pixels have no size if it says 1 mm for both sides.

    ValueError if the content is bad; the text does not repeat the path.
    """
    from lit_medgen.images.dicom import read_series  # here and below: pydicom and nibabel take a while to load
    from lit_medgen.images.nifti import read_nifti  # as above
    from lit_medgen.images.png import read_png  # as above

    if isinstance(path, list) or path.suffix.lower() in ("", *DICOM_SUFFIXES):
        files, pictures = path if isinstance(path, list) else [path], flat and (numbers or channels > 0)
        return read_series(files, flat, pictures, channels)
    if path.suffix.lower() == ".png":
        return read_png(path, numbers, channels)
    return read_nifti(path, form, finite, flat, channels)


def begins_as_dicom(head: bytes) -> bool:
    """Whether a file whose first 132 bytes or more are given is DICOM.

    The letters DICM follow its preamble or, without one, an element of the groups that come first is at its beginning.
    """
    first = head[:2] in (b"\x02\x00", b"\x08\x00") and head[2:3] < b"\x70" and head[3:4] == b"\x00"
    kind = head[4:6]  # explicit value representation, UI for example; implicit: a length, below 65,536
    return head[128:132] == b"DICM" or (first and ((kind.isalpha() and kind.isupper()) or head[6:8] == b"\x00\x00"))


def partner_of(path: Path) -> Path | None:
    """The other file of a pair of header (.hdr) and voxels (.img), in capitals or not; None if there is none."""
    suffix = {".hdr": ".img", ".img": ".hdr"}.get(path.suffix.lower())
    others = [path.with_suffix(each) for each in (suffix, suffix.upper(), suffix.title())] if suffix else []
    return next((other for other in others if other.is_file()), None)
