"""NIfTI in and out, geometry kept.

Every fault of a file is a ValueError whose text says what was found and expected; the caller adds the path.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from lit_medgen.files import write_atomically

MAX_BYTES = 2 * 1024**3
"""A header may claim any size; a volume larger than this as float32 is refused before it is allocated."""


def read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels x y z in RAS order, float32, and their 4 4 affine (voxel to world, mm)."""
    try:
        image = nib.load(path)
        _check_header(image)
        _check_stream(path)
        canonical = nib.as_closest_canonical(image)
        voxels = np.asarray(canonical.dataobj, dtype=np.float32)
    except (EOFError, OSError, zlib.error, ImageFileError, HeaderDataError) as error:
        raise ValueError(
            f"cannot be read as NIfTI ({error or type(error).__name__}); the file is cut off or damaged"
        ) from error
    voxels = voxels.reshape(voxels.shape[:3])  # a trailing axis of length 1 is harmless
    bad = int(voxels.size - np.isfinite(voxels).sum())
    if bad:
        raise ValueError(f"{bad} of {voxels.size} voxels are NaN or infinite; expected finite values")
    return voxels, np.asarray(canonical.affine, dtype=np.float64)


def _check_header(image: Any) -> None:
    shape = image.shape
    if len(shape) < 3 or any(length != 1 for length in shape[3:]):
        raise ValueError(f"{len(shape)}D image of shape {shape}; expected one 3D volume")
    if 4 * int(np.prod(shape, dtype=np.int64)) > MAX_BYTES or min(shape) < 1:
        raise ValueError(f"header claims shape {shape}; expected at most 2 GiB as float32")
    header = image.header
    if not header["qform_code"] and not header["sform_code"]:
        raise ValueError("qform_code and sform_code are both 0, so left and right are unknown; set one of them")
    if (
        header["qform_code"]
        and header["sform_code"]
        and not np.allclose(image.get_qform(), image.get_sform(), atol=1e-2)
    ):
        raise ValueError("qform and sform disagree by more than 0.01 mm; set the code of the wrong one to 0")
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-6:
        raise ValueError("the affine is singular or not finite; expected a voxel-to-world matrix")


def _check_stream(path: Path) -> None:
    """Reads a compressed file to its end, where its checksum is compared; nibabel stops after the last voxel."""
    if path.suffix == ".gz":
        with gzip.open(path) as file:
            while file.read(1 << 20):
                pass


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray, description: str = "") -> None:
    """Writes x y z voxels with their affine; both codes say "aligned" (2). `description`: at most 79 bytes."""
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, code=2)
    image.set_qform(affine, code=2)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode()[:79]
    content = image.to_bytes()
    write_atomically(path, gzip.compress(content, compresslevel=1, mtime=0) if path.suffix == ".gz" else content)
