"""Label maps and source images from files, as a method was trained to read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_medgen.batch import DataSpec
from lit_medgen.errors import InputError, MissingDataError, describe
from lit_medgen.images import DICOM_SUFFIXES, read_image
from lit_medgen.sample_files import as_laid_out, read_voxels, scaled

SAME_SPACING = 0.01
"""Relative difference of voxel sizes that rounding in files may make."""
IMAGE_SUFFIXES = (".nii", ".nii.gz", ".mgz", ".png", *DICOM_SUFFIXES)


def listed_images(option: str, folder: Path) -> dict[str, Path]:
    """Name -> file, or folder of a DICOM series or of an image's channels; MissingDataError if there are none."""
    if not folder.is_dir():
        raise MissingDataError(f"{option}: no folder '{folder}'.")
    paths = [path for path in _visible(folder) if path.is_dir() or path.name.lower().endswith(IMAGE_SUFFIXES)]
    named = {path.name if path.is_dir() else _stem(path.name): path for path in paths}
    if not named:
        raise MissingDataError(f"{option} {folder}: no images there; expected {', '.join(IMAGE_SUFFIXES)} or folders.")
    if len(named) < len(paths):
        raise InputError(f"{option} {folder}: two files have the same name but for their suffix; rename one.")
    return named


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder, in the order of the names, without hidden files."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _stem(name: str) -> str:
    """A file's name without the suffix of images, which may be a double one; other dots are of the name."""
    suffixes = [suffix for suffix in IMAGE_SUFFIXES if name.lower().endswith(suffix)]
    return name[: -max(map(len, suffixes))] if suffixes else name


def read_label_map(path: Path, spec: DataSpec) -> tuple[Tensor, Tensor | None]:
    """1 1 *s, int64, the classes in a file, and its affine, 1 4 4; InputError for another size or unknown classes."""
    classes, affine = _read_file(path, spec)
    if classes.shape != tuple(spec.size):
        raise InputError(f"{path}: a label map of {classes.shape}; expected {tuple(spec.size)}, as it was trained on.")
    values, counts = np.unique(classes, return_counts=True)
    known = range(len(spec.classes))
    unknown = [f"{value:g} ({count} voxels)" for value, count in zip(values, counts, strict=True) if value not in known]
    if unknown:
        raise InputError(
            f"{path}: classes {', '.join(unknown[:5])} are not those of the training maps, 0 to {len(known) - 1} "
            f"({'; '.join(spec.classes)})."
        )
    return torch.from_numpy(classes.astype(np.int64))[None, None], affine


def read_mask(path: Path, spec: DataSpec) -> Tensor:
    """1 1 *s, bool: the voxels that are given, which are 0 in the file; all others are to be made anew.

    InputError for another size, and where nothing is given or nothing is to be made.
    """
    values, _ = _read_file(path, spec)
    if values.shape != tuple(spec.size):
        raise InputError(f"{path}: a mask of {values.shape}; expected {tuple(spec.size)}, the size of the images.")
    observed = torch.from_numpy(values == 0)[None, None]
    if observed.all():
        raise InputError(f"{path}: a mask of zeros, so nothing would be made anew; give another value there.")
    if not observed.any():
        raise InputError(
            f"{path}: a mask without zeros, so nothing of the source would be kept; leave out --sources and --masks "
            "for images of noise alone."
        )
    return observed


def read_source(path: Path, spec: DataSpec) -> tuple[Tensor, Tensor | None]:
    """1 c *s in [-1, 1], a source image, and its affine, 1 4 4.

    A folder without DICOM slices in it holds one file for each channel, named as the source that the model was trained
    on. InputError for other names, another size or voxel size, and for values outside the data's window.
    """
    files = [path]
    if path.is_dir() and not any(file.suffix.lower() in DICOM_SUFFIXES for file in _visible(path)):
        files = _named(path, spec.sources)
    elif len(spec.sources) > 1:
        raise InputError(f"{path}: a single image; expected a folder with files {', '.join(spec.sources)}.")
    channels = [_read_channel(file, spec) for file in files]
    return torch.stack([image for image, _ in channels], dim=1), channels[0][1]


def _named(folder: Path, sources: Sequence[str]) -> list[Path]:
    """The file of each source in an image's folder; a single one may have any name."""
    by_name = {_stem(file.name): file for file in _visible(folder)}
    if len(sources) < 2 and len(by_name) == 1:
        return list(by_name.values())
    if sorted(by_name) != sorted(sources):
        raise InputError(
            f"{folder}: files {', '.join(sorted(by_name)) or '(none)'}; expected one for each source that the model "
            f"was trained on: {', '.join(sources) or 'a single one'}."
        )
    return [by_name[name] for name in sources]


def _read_channel(path: Path, spec: DataSpec) -> tuple[Tensor, Tensor | None]:
    size = spec.source_size or tuple(spec.size)
    try:
        values, affine, window = read_voxels(path, spec)
        if values.shape != size:
            raise ValueError(f"a source of {values.shape}; expected {size}, as it was trained on")
        if size == tuple(spec.size):
            _refuse_other_spacing(affine, spec)
        return scaled(values, window, spec)[None], _as_affine(affine)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {describe(error)}.") from error


def _read_file(path: Path, spec: DataSpec) -> tuple[np.ndarray, Tensor | None]:
    """The values of a file or of a folder of DICOM slices, and the affine of a volume."""
    dim = len(spec.size)
    try:
        if path.is_dir() and not _visible(path):
            raise ValueError("an empty folder; expected the slices of a DICOM series")
        files = _visible(path) if path.is_dir() else path
        values, affine = as_laid_out(*read_image(files, flat=dim == 2, numbers=True), spec)
        if values.shape == tuple(spec.size):
            _refuse_other_spacing(affine, spec)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {describe(error)}.") from error
    return values, _as_affine(affine)


def _refuse_other_spacing(affine: np.ndarray, spec: DataSpec) -> None:
    """ValueError for a volume whose voxels have another size than those the model was trained on."""
    if len(spec.size) == 3:
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if not np.allclose(spacing, spec.spacing_mm, rtol=SAME_SPACING):
            raise ValueError(
                f"voxels of {' x '.join(f'{side:.4g}' for side in spacing)} mm; expected "
                f"{' x '.join(f'{side:.4g}' for side in spec.spacing_mm)} mm, as it was trained on"
            )


def _as_affine(affine: np.ndarray) -> Tensor | None:
    """1 4 4, of a volume; None for a 2D image, whose file says nothing of where it lies."""
    return torch.from_numpy(affine)[None] if affine.shape == (4, 4) else None
