"""NIfTI in and out, geometry kept.

Every fault of a file is a ValueError whose text says what was found and expected; the caller adds the path.
"""

from __future__ import annotations

import gzip
import logging
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from lit_medgen.files import write_atomically
from lit_medgen.images import partner_of
from lit_medgen.images.colours import opaque

MAX_BYTES = 2 * 1024**3
"""A header may claim any size; a volume larger than this as float32 is refused before it is allocated."""

logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # what it logs of a header is raised as well, or mended

Form = Literal["agree", "sform", "qform"]
PREPROCESSING = "data.init_args.preprocessing"
"""Where a config has the options that the texts below name."""
MM_PER_UNIT = {1: 1000.0, 3: 1e-3}
"""By the code of `xyzt_units`: metres and micrometres; any other code, 0 (unknown) among them, is taken as mm."""
MAX_OFFSET = 64 * 1024**2
"""Bytes of header and extensions before the voxels; and those after them, such as the footer of MGH."""
UNPACKED_FREELY, MAX_RATIO = 512 * 1024**2, 200
"""Bytes to which any file may be unpacked, and the ratio beyond; empty label maps shrink to a thousandth."""
EXTENSION = 16
"""Bytes of an extension, at least; its first four say how many it has."""
HEADERS = {348: ("f", 108, 352), 540: ("q", 168, 544)}
"""Size of the header of NIfTI-1 and 2 -> type and place of the voxels' offset, and where extensions begin."""
SAME_PLACE = 2e-2
"""The share of a voxel's side by which qform and sform may differ: more than what rounding to float32 explains."""


def read_nifti(
    path: Path, form: Form = "agree", finite: bool = True, flat: bool = False, channels: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Voxels x y z in RAS order, float32, and their 4 4 affine (voxel to world, mm).

    Args:
        path: NIfTI in one file or as .hdr and .img, or MGH (.mgz, .mgh); metres and micrometres are converted.
        form: the matrix that places voxels where the file has two: the named one, or either if they agree.
        finite: refuse a volume with voxels that are NaN or infinite.
        flat: an image of two dimensions is a volume of one slice, not refused.
        channels: how many are expected; voxels are then c x y z, however many there are: those along the fourth axis
            (or the fifth, NIfTI's own of vectors), or the colours. Transparent parts of an image with one more, its
            alpha, are 0. 0: one volume, other files are refused.
    """
    _check_suffix(path)
    try:
        _check_extensions(path)
        with _opened(path) as image:
            _check_header(image, flat, channels > 0)
            affine = _affine(image, form)
            _check_stream(path, image)
            stored = _channels(image, channels) if channels else _voxels(image)
            canonical = nib.as_closest_canonical(nib.Nifti1Image(stored, affine))
    except (EOFError, OSError, zlib.error, ImageFileError, HeaderDataError) as error:
        raise ValueError(
            f"cannot be read as NIfTI ({error or type(error).__name__}); the file is cut off or damaged"
        ) from error
    voxels = np.asarray(canonical.dataobj)
    bad = int(voxels.size - np.isfinite(voxels).sum())
    if bad and finite:
        raise ValueError(
            f"{bad} of {voxels.size} voxels are NaN or infinite; expected finite values, or "
            f"{PREPROCESSING}.non_finite: fill, which makes them background"
        )
    voxels = np.moveaxis(voxels, 3, 0) if channels else voxels
    return voxels, np.asarray(canonical.affine, dtype=np.float64)


def whole_numbers(path: Path) -> str:
    """The type in which a file stores its voxels, if that holds whole numbers alone; else nothing."""
    with _opened(path) as image:
        kind = image.get_data_dtype()
        slope = image.header.get_slope_inter()[0] if isinstance(image, nib.Nifti1Pair) else None
    return str(kind) if kind.kind in "iub" and slope in (None, 1) else ""


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The image of a file, by a link in small letters where nibabel would look for it under another name."""
    suffix, partner = _suffix(path), partner_of(path)
    if partner is None and suffix in (suffix.lower(), suffix.upper()):
        yield nib.load(path)
        return
    with TemporaryDirectory() as folder:
        for each in filter(None, (partner, path)):
            link = Path(folder, f"image{_suffix(each).lower()}")
            link.symlink_to(each.absolute())
        yield nib.load(link)


def _suffix(path: Path) -> str:
    """The suffix as it is written, `.nii.gz` as one."""
    last = path.name[-len(".nii.gz") :]
    return last if last.lower() == ".nii.gz" else path.suffix


def _check_header(image: Any, flat: bool, of_channels: bool) -> None:
    if not isinstance(image, nib.Nifti1Pair | nib.MGHImage):
        raise ValueError(f"a file of another format ({type(image).__name__}); expected NIfTI or MGH")
    shape = image.shape
    further = [length for length in shape[3:] if length != 1]
    if len(shape) < 3 - flat or len(further) > of_channels:
        named = f" (or a name for each of {shape[3]} channels in {PREPROCESSING}.channels)" if len(shape) == 4 else ""
        raise ValueError(f"{len(shape)}D image of shape {shape}; expected one 3D volume{named}")
    if 4 * int(np.prod(shape, dtype=np.int64)) > MAX_BYTES or min(shape) < 1:
        raise ValueError(f"header claims shape {shape}; expected at most 2 GiB as float32")
    if (dtype := image.get_data_dtype()).kind == "c":
        raise ValueError(f"complex voxels ({dtype}); expected real ones: save the magnitude as a volume of its own")


def _affine(image: Any, form: Form) -> np.ndarray:
    """Voxel to world, mm."""
    header = image.header
    if isinstance(image, nib.MGHImage):  # which is in mm
        if not header["goodRASFlag"]:
            raise ValueError("goodRASFlag is 0, so left and right are unknown; set the volume's orientation")
        return _regular(image.affine)
    if not header["qform_code"] and not header["sform_code"]:
        raise ValueError("qform_code and sform_code are both 0, so left and right are unknown; set one of them")
    affine = image.affine  # the sform, if there is one
    if header["qform_code"] and header["sform_code"]:
        qform, sform = image.get_qform(), image.get_sform()
        voxel = np.linalg.norm(sform[:3, :3], axis=0).min()
        if form == "agree" and not np.allclose(qform, sform, atol=SAME_PLACE * voxel):
            raise ValueError(f"{_difference(image, qform, sform)}; set {PREPROCESSING}.form to sform or qform")
        affine = qform if form == "qform" else sform
    mm = MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    return np.asarray(np.diag([mm, mm, mm, 1.0]) @ _regular(affine))


def _regular(affine: np.ndarray) -> np.ndarray:
    """The same; ValueError if it is singular, relative to the voxels' own size, which may be micrometres."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * lengths.prod():
        raise ValueError("the affine is singular or not finite; expected a voxel-to-world matrix")
    return affine


def _difference(image: Any, qform: np.ndarray, sform: np.ndarray) -> str:
    """Where the two forms put the corner that they disagree about most."""
    last = np.array([*image.shape, 1])[:3] - 1
    corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]) * [*last, 1]
    apart = np.linalg.norm(corners @ (qform - sform).T, axis=1)
    voxel = corners[apart.argmax()]
    by_qform, by_sform = (", ".join(f"{mm:g}" for mm in (form @ voxel)[:3].round(3)) for form in (qform, sform))
    header = image.header
    return (
        f"qform and sform disagree: qform (code {int(header['qform_code'])}) puts voxel {voxel[:3].tolist()} at "
        f"({by_qform}), sform (code {int(header['sform_code'])}) at ({by_sform})"
    )


def _voxels(image: Any) -> np.ndarray:
    """x y z as stored, float32; a colour image of equal channels is grey."""
    stored = np.asarray(image.dataobj)
    if channels := stored.dtype.names:  # NIfTI's RGB24 and RGBA32
        if any((stored[name] != stored["R"]).any() for name in channels if name != "A"):
            raise ValueError(f"a colour image ({''.join(channels)}); expected grey values")
        stored = stored["R"]
    with np.errstate(over="ignore"):  # beyond float32 is infinite, and counted as such
        return stored.reshape((*stored.shape, 1)[:3]).astype(np.float32)  # a trailing axis of length 1 is harmless


def _channels(image: Any, expected: int) -> np.ndarray:
    """x y z c as stored, float32."""
    stored = np.asarray(image.dataobj)
    if names := stored.dtype.names:
        stored = np.stack([stored[name] for name in names], axis=-1)
        stored = stored.reshape((*(*stored.shape[:-1], 1, 1)[:3], len(names)))
        return opaque(stored.astype(np.float32), expected)
    num = stored[:1, :1, :1].size if stored.ndim > 3 else 1
    with np.errstate(over="ignore"):  # as in `_voxels`
        return stored.reshape((*(*stored.shape, 1)[:3], num)).astype(np.float32)


def _check_suffix(path: Path) -> None:
    """Whether a file whose name says that it is compressed begins so; nibabel believes the name."""
    if path.suffix.lower() in (".gz", ".mgz"):
        with path.open("rb") as file:
            if (head := file.read(2)) and head != b"\x1f\x8b":  # what gzip begins with
                raise ValueError(
                    f"cannot be read as NIfTI (it is not compressed though its name ends in {path.suffix}); rename or "
                    "compress it unless it is cut off or damaged"
                )


def _check_extensions(path: Path) -> None:
    """ValueError for extensions that do not end before the voxels of NIfTI; nibabel reads all that they claim."""
    if path.suffix.lower() not in (".nii", ".gz"):
        return
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        header = file.read(max(first for *_, first in HEADERS.values()))
        orders = [order for order in "<>" if len(header) > 4 and struct.unpack_from(f"{order}i", header)[0] in HEADERS]
        if not orders:  # as nibabel will say
            return
        order = orders[0]
        kind, place, at = HEADERS[struct.unpack_from(f"{order}i", header)[0]]
        if len(header) < at:
            return
        offset = struct.unpack_from(f"{order}{kind}", header, place)[0]
        if not 0 <= offset <= MAX_OFFSET:
            raise ValueError(f"header claims that voxels begin at byte {offset:.6g}; expected at most {MAX_OFFSET:,}")
        has_extensions = header[at - 4]
        file.seek(at)
        while has_extensions and offset - at >= EXTENSION and (start := file.read(8)):
            size = struct.unpack(f"{order}i", start[:4])[0] if len(start) == 8 else 0
            if not EXTENSION <= size <= offset - at:
                raise ValueError(
                    f"an extension of the header claims {size:,} bytes, and does not end before the voxels"
                )
            at += size
            file.seek(at)


def _check_stream(path: Path, image: Any) -> None:
    """Reads a compressed file to its end, where its checksum is compared; nibabel stops after the last voxel.

    ValueError for a small file that is unpacked to any size.
    """
    if path.suffix.lower() not in (".gz", ".mgz"):
        return
    voxels = int(np.prod(image.shape, dtype=np.int64)) * image.get_data_dtype().itemsize
    most, packed, size = voxels + image.dataobj.offset + MAX_OFFSET, path.stat().st_size, 0
    with gzip.open(path) as file:
        while part := file.read(1 << 20):
            size += len(part)
            if size > most:
                raise ValueError(f"goes on long after the last voxel of shape {image.shape}; expected one volume")
            if size > max(UNPACKED_FREELY, MAX_RATIO * packed):
                raise ValueError(
                    f"its {packed:,} bytes are unpacked to more than {MAX_RATIO} times as many; expected an image"
                )


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray, description: str = "") -> None:
    """Writes what `nifti_bytes` makes of the voxels, compressed if the name ends in .gz."""
    write_atomically(path, nifti_bytes(voxels, affine, description, compressed=path.suffix == ".gz"))


def nifti_bytes(voxels: np.ndarray, affine: np.ndarray, description: str = "", compressed: bool = False) -> bytes:
    """A NIfTI file of x y z voxels and their affine; both codes say "aligned" (2). `description`: at most 79 bytes."""
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, code=2)
    image.set_qform(affine, code=2)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode()[:79]
    content: bytes = image.to_bytes()
    return gzip.compress(content, compresslevel=1, mtime=0) if compressed else content
