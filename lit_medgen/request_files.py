"""Label maps and source images from files, as a method was trained to read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_medgen.batch import DataSpec
from lit_medgen.errors import InputError, MissingDataError, describe
from lit_medgen.images import read_image
from lit_medgen.sample_reading import IMAGE_SUFFIXES, as_laid_out, read_channels, scaled, stem_of

SAME_SPACING = 0.01
"""Relative difference of voxel sizes that rounding in files may make."""


def listed_images(option: str, folder: Path) -> dict[str, Path]:
    """Name -> file, or folder of a DICOM series or of an image's channels; MissingDataError if there are none."""
    if not folder.is_dir():
        raise MissingDataError(f"{option}: no folder '{folder}'.")
    paths = [path for path in _visible(folder) if path.is_dir() or path.name.lower().endswith(IMAGE_SUFFIXES)]
    named = {path.name if path.is_dir() else stem_of(path.name): path for path in paths}
    if not named:
        raise MissingDataError(f"{option} {folder}: no images there; expected {', '.join(IMAGE_SUFFIXES)} or folders.")
    if len(named) < len(paths):
        raise InputError(f"{option} {folder}: two files have the same name but for their suffix; rename one.")
    return named


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder, in the order of the names, without hidden files."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


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

    Its channels are the sources that the model was trained on or, without sources, the channels of its images: all in
    one file, or a file of each in a folder, named as the channel. InputError for other names, another size or voxel
    size, and for values outside the data's window.
    """
    size, names = spec.source_size or tuple(spec.size), spec.sources or spec.named_channels
    try:
        values, affine, window = read_channels(path, spec, names)
        if values.shape[1:] != size:
            raise ValueError(f"a source of {values.shape[1:]}; expected {size}, as it was trained on")
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
