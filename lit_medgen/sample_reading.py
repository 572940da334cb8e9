"""Samples and sources from files: what `sample_files` wrote, or other programs in the same form."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_medgen.axes import backward
from lit_medgen.batch import DataSpec, Images
from lit_medgen.errors import InputError, MissingDataError, describe
from lit_medgen.images import DICOM_SUFFIXES
from lit_medgen.images.dicom import group_by_series, read_series
from lit_medgen.images.dicom_slices import read_dataset
from lit_medgen.images.nifti import read_nifti, whole_numbers
from lit_medgen.images.png import read_png
from lit_medgen.sample_files import dicom_window

WINDOW_TOLERANCE = 0.01
"""Share of the window by which a sample's values may lie outside it; they are then cut off."""
MIN_STEPS = 16
"""A window narrower than that is not filled by whole numbers."""
IMAGE_SUFFIXES = (".nii", ".nii.gz", ".mgz", ".png", *DICOM_SUFFIXES)


@dataclass(frozen=True)
class Samples:
    """Samples in a folder.

    Attributes:
        images: the samples, read from their files when they are needed; keys are names of files.
        made_from: n, what each was made from, as the manifest says.
    """

    images: Images
    made_from: Sequence[Mapping[str, Any]]


def read_samples(folder: Path, spec: DataSpec) -> Samples:
    """The samples that a manifest lists; a file is read when it is needed.

    MissingDataError without a manifest. Reading raises InputError for a file that cannot be read, has another grid than
    the data, or values that are not finite or outside the data's window: a mistaken unit must not become white images.
    """
    manifest = folder / "manifest.csv"
    if not manifest.is_file():
        raise MissingDataError(f"--samples: no {manifest}; give a folder that `sample` wrote.")
    rows = _rows(manifest)
    names = [row["file"] for row in rows]
    for name in names:
        if not (folder / name).exists():
            raise MissingDataError(f"{folder / name}: listed in manifest.csv, but not there; sample again.")

    def read(indices: Sequence[int]) -> Tensor:
        return torch.stack([_read_sample(folder / names[index], spec) for index in indices])

    made_from = [_condition(row.get("condition") or "{}", manifest) for row in rows]
    return Samples(Images(names, names, read), made_from)


def _condition(cell: str, manifest: Path) -> dict[str, Any]:
    """What a cell of the manifest says that an image was made from; InputError if `sample` cannot have written it."""
    try:
        row = json.loads(cell)
    except ValueError as error:
        raise InputError(f"{manifest}: column condition is no JSON ({describe(error)}); sample again.") from error
    if not isinstance(row, dict) or not isinstance(row.get("key", ""), str):
        raise InputError(f"{manifest}: column condition says {cell!r}; expected names and values; sample again.")
    return row


def _rows(manifest: Path) -> list[dict[str, str]]:
    """The rows of a manifest, each of a file in its own folder; InputError if it is none of ours."""
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (ValueError, csv.Error) as error:
        raise InputError(f"{manifest}: no CSV file ({describe(error)}); give a folder that `sample` wrote.") from error
    names = [row.get("file") or "" for row in rows]
    if not names or any(not name or Path(name).name != name for name in names):
        raise InputError(
            f"{manifest}: no rows, or no column 'file' of names in this folder; give a folder that `sample` wrote."
        )
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise InputError(f"{manifest}: {twice} is listed twice; list each sample once.")
    return rows


def spec_of(folder: Path) -> DataSpec | None:
    """The spec that `sample` has written beside samples; None where there is none."""
    path = folder / "spec.json"
    if not path.is_file():
        return None
    try:
        return DataSpec.from_plain(json.loads(path.read_text()))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{path}: not a spec that `sample` wrote ({describe(error)}); sample again.") from error


def _read_sample(path: Path, spec: DataSpec) -> Tensor:
    """c *s in [-1, 1], of a file or a folder; InputError if it is no sample of this data."""
    try:
        values, affine, window = read_channels(path, spec, spec.named_channels)
        _refuse_other_grid(values[0], affine, spec)
        return scaled(values, window, spec)
    except ValueError as error:
        raise InputError(f"{path}: {error}.") from error


def _refuse_other_grid(values: np.ndarray, affine: np.ndarray, spec: DataSpec) -> None:
    """ValueError for a sample that does not lie on the data's grid, wherever that is in the world."""
    if values.shape != tuple(spec.size):
        raise ValueError(f"size {values.shape}, but the data has {tuple(spec.size)}; use the data it was trained on")
    expected = spec.affine().numpy()
    if len(spec.size) == 3 and not np.allclose(affine[:3, :3], expected[:3, :3], atol=1e-2 * min(spec.spacing_mm)):
        axes = " ".join(str(column.round(3).tolist()) for column in affine[:3, :3].T)
        raise ValueError(
            f"its affine has axes {axes} mm, but the data has voxels of {spec.spacing_mm} mm along {spec.orientation}; "
            "put it on the data's grid"
        )


def scaled(values: np.ndarray, window: tuple[float, float], spec: DataSpec) -> Tensor:
    """Values in [-1, 1]; ValueError for values that are not finite or lie outside the window."""
    low, high = window
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise ValueError(f"{bad} of {values.size} voxels are NaN or infinite; expected finite values, so make it again")
    tolerance = WINDOW_TOLERANCE * (high - low)
    if values.min() < low - tolerance or values.max() > high + tolerance:
        raise ValueError(
            f"values from {values.min():.6g} to {values.max():.6g}, but samples of this data lie from {low:g} to "
            f"{high:g} ({spec.intensity_unit}), give or take {tolerance:.3g}; scale them to that, as `sample` does"
        )
    scaled = (torch.from_numpy(np.ascontiguousarray(values)).double() - low) / (high - low) * 2 - 1
    return scaled.clamp(-1, 1).float()


def as_laid_out(voxels: np.ndarray, affine: np.ndarray, spec: DataSpec) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of a file in RAS order as a 2D image x y of this data, with their affine; volumes as they are.

    Axes before these, such as that of channels, stay.
    """
    plane = spec.world_axes
    across = sorted({0, 1, 2}.difference(plane))
    if len(spec.size) == 3 or len(affine) != 4 or voxels.shape[across[0] - 3] != 1:
        return voxels, affine
    order = [*plane, *across]
    image, affine = np.moveaxis(voxels, [axis - 3 for axis in order], [-3, -2, -1])[..., 0], affine[:, [*order, 3]]
    for axis in backward(spec.orientation):
        image = np.flip(image, axis - 2)
        affine[:3, 3] += affine[:3, axis] * (image.shape[axis - 2] - 1)
        affine[:3, axis] *= -1
    return image, affine


def read_channels(
    path: Path, spec: DataSpec, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """The values c *s of an image's channels, their affine, and what -1 and 1 are in the file.

    All are in one file (a NIfTI x y z c, a colour PNG), or each in one of a folder, which is named as the channel, or
    in a DICOM series of it, in their order. ValueError if it cannot be read, or has other channels.
    """
    if path.is_dir() and not dicom_slices(path):
        parts = [read_voxels(file, spec) for file in named_files(path, names)]
    elif len(names) > 1 and is_dicom(path) and len(series := _series(path)) > 1:
        _refuse_other_number(len(series), names, "series")
        parts = [(*_of_series(files, spec, 0), dicom_window(spec)) for files in series]
    elif len(names) > 1:
        values, affine, window = read_voxels(path, spec, len(names))
        _refuse_other_number(len(values), names, "channels")
        return values, affine, window
    else:
        parts = [read_voxels(path, spec)]
    if any(part[0].shape != parts[0][0].shape or not np.allclose(part[1], parts[0][1]) for part in parts):
        raise ValueError("channels on different grids; expected one grid")
    return np.stack([values for values, *_ in parts]), *parts[0][1:]


def named_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """The file of each channel in an image's folder; a single one may have any name. ValueError for other names."""
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    by_name = {stem_of(file.name): file for file in files}
    if len(names) < 2 and len(by_name) == 1:
        return list(by_name.values())
    if sorted(by_name) != sorted(names):
        raise ValueError(
            f"files {', '.join(sorted(by_name)) or '(none)'}; expected one for each channel that the model was trained "
            f"on: {', '.join(names)}"
        )
    return [by_name[name] for name in names]


def stem_of(name: str) -> str:
    """A file's name without the suffix of images, which may be a double one; other dots are of the name."""
    suffixes = [suffix for suffix in IMAGE_SUFFIXES if name.lower().endswith(suffix)]
    return name[: -max(map(len, suffixes))] if suffixes else name


def dicom_slices(folder: Path) -> list[Path]:
    """The DICOM files in a folder."""
    return [file for file in sorted(folder.glob("[!.]*")) if file.suffix.lower() in DICOM_SUFFIXES]


def is_dicom(path: Path) -> bool:
    """Whether a path is a folder, or a file of DICOM by its name; dots in a folder's name are of the name."""
    return path.is_dir() or path.suffix.lower() in ("", *DICOM_SUFFIXES)


def read_voxels(path: Path, spec: DataSpec, channels: int = 0) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """The values *s of a sample, their affine, and what -1 and 1 are in the file; ValueError if it cannot be read.

    c *s of a file from which `channels` are expected, however many there are.
    """
    flat = len(spec.size) == 2
    if not is_dicom(path) and path.suffix.lower() == ".png":
        return *read_png(path, channels=channels), (0.0, 255.0)
    if not is_dicom(path):
        low, high = spec.intensity_window
        voxels, affine = as_laid_out(*read_nifti(path, finite=False, flat=flat, channels=channels), spec)
        if high - low < MIN_STEPS and (stored := whole_numbers(path)):
            raise ValueError(
                f"stored as {stored}, whole numbers from {voxels.min():g} to {voxels.max():g}, but samples of this "
                f"data lie from {low:g} to {high:g} ({spec.intensity_unit}); scale them and store them as float32"
            )
        return voxels, affine, (low, high)
    if not (files := dicom_slices(path) if path.is_dir() else [path]):
        raise ValueError("no DICOM slices there")
    return *_of_series(files, spec, channels), dicom_window(spec)


def _series(path: Path) -> list[list[Path]]:
    """The files of each DICOM series in a folder, in the order of their numbers."""
    series = group_by_series(dicom_slices(path)) if path.is_dir() else [[path]]
    return sorted(series, key=lambda files: int(read_dataset(files[0], True).get("SeriesNumber") or 0))


def _of_series(files: Sequence[Path], spec: DataSpec, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and affine of a DICOM series; of 2D images, pictures without a place in the patient."""
    flat = len(spec.size) == 2
    return read_series(files, flat, flat, channels)


def _refuse_other_number(num: int, names: Sequence[str], what: str) -> None:
    if num != len(names):
        found = "a single image" if num == 1 else f"{num} {what}"
        raise ValueError(f"{found}; expected {len(names)} channels, or a folder with files {', '.join(names)}")
