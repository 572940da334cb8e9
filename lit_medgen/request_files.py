"""Label maps and source images from files, as a method was trained to read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_medgen.batch import DataSpec
from lit_medgen.errors import InputError, MissingDataError, describe
from lit_medgen.images import DICOM_SUFFIXES, read_image
from lit_medgen.sample_files import read_voxels, scaled

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
    return name[: -max(map(len, suffixes))]


def read_label_map(path: Path, spec: DataSpec) -> tuple[Tensor, Tensor | None]:
    """1 1 *s, int64, the classes in a file, and its affine, 1 4 4; InputError for another size or unknown classes."""
    classes, affine = _read_file(path, len(spec.size))
    if classes.shape != tuple(spec.size):
        raise InputError(f"{path}: a label map of {classes.shape}; expected {tuple(spec.size)}, as it was trained on.")
    values, counts = np.unique(classes, return_counts=True)
    known = range(len(spec.classes))
    unknown = [f"{value:g} ({count} voxels)" for value, count in zip(values, counts, strict=True) if value not in known]
    if unknown:
        raise InputError(
            f"{path}: classes {', '.join(unknown[:5])} are not those of the training maps, 0 to {len(known) - 1} "
            f"({', '.join(spec.classes)})."
        )
    return torch.from_numpy(classes.astype(np.int64))[None, None], affine


def read_source(path: Path, spec: DataSpec) -> tuple[Tensor, Tensor | None]:
    """1 c *s in [-1, 1], a source image, and its affine, 1 4 4.

    A folder without DICOM slices in it holds one file for each channel, in the order of their names. InputError for
    another size or number of channels than the model was trained on, and for values outside the data's window.
    """
    size, num_channels = spec.source_size or tuple(spec.size), spec.source_channels or spec.channels
    files = [path]
    if path.is_dir() and not any(file.suffix.lower() in DICOM_SUFFIXES for file in _visible(path)):
        files = _visible(path)
    if len(files) != num_channels:
        raise InputError(f"{path}: {len(files)} channels; expected {num_channels}, as it was trained on.")
    channels = [_read_channel(file, size, spec) for file in files]
    return torch.stack([image for image, _ in channels], dim=1), channels[0][1]


def _read_channel(path: Path, size: tuple[int, ...], spec: DataSpec) -> tuple[Tensor, Tensor | None]:
    try:
        values, affine, window = read_voxels(path, spec)
        if values.shape != tuple(size):
            raise ValueError(f"a source of {values.shape}; expected {tuple(size)}, as it was trained on")
        return scaled(values, window, spec)[None], _as_affine(affine)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {describe(error)}.") from error


def _read_file(path: Path, dim: int) -> tuple[np.ndarray, Tensor | None]:
    """The values of a file or of a folder of DICOM slices, and the affine of a volume."""
    try:
        if path.is_dir() and not _visible(path):
            raise ValueError("an empty folder; expected the slices of a DICOM series")
        values, affine = read_image(_visible(path) if path.is_dir() else path, flat=dim == 2)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {describe(error)}.") from error
    values = values[..., 0] if dim == 2 and values.ndim == 3 and values.shape[-1] == 1 else values
    return values, _as_affine(affine)


def _as_affine(affine: np.ndarray) -> Tensor | None:
    """1 4 4, of a volume; None for a 2D image, whose file says nothing of where it lies."""
    return torch.from_numpy(affine)[None] if affine.shape == (4, 4) else None
