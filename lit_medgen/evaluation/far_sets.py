"""Far out-of-distribution sets: images of other organs or contrasts, from files of any kind, on the model's grid.

Where the data says how a raw image of the kind comes to its grid (`TrainingData.brought`), a file comes there in mm,
like those that were trained on. How other files become images of the model, whatever they were:

* of a volume, where the model makes 2D images, the middle axial slice is taken, its axes in the directions of the data;
* it is scaled to fit into the grid, its sides in their true ratio, by means over areas, and stands in its middle;
* values from the 0.5th to the 99.5th percentile become [-1, 1]. Where the data has grey levels of 8 bits, files of such
  levels are taken as they are; where it has Hounsfield units, DICOM is brought to its window.

Shapes: n images, c channels (one), *s their axes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lit_medgen.axes import backward
from lit_medgen.batch import DataSpec, Images
from lit_medgen.errors import InputError, MissingDataError, describe
from lit_medgen.images import DICOM_SUFFIXES, read_image
from lit_medgen.images.dicom import group_by_series

SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh", ".png")
PERCENTILES = (0.5, 99.5)
WHITE = 255


Bring = Callable[[np.ndarray, np.ndarray], np.ndarray | None]
"""See `TrainingData.brought`."""


def images_of_folder(
    name: str, folder: Path, spec: DataSpec, bring: Bring, limit: int | None = None, option: str | None = None
) -> Images:
    """The images below a folder; files of one of its folders are of one person, others of a person each.

    Keys are hashes of the paths below the folder, of which files of patients may be named. InputError, before anything
    is computed, for a folder without images and for the first that cannot be read or has another number of axes.

    Args:
        name: of the set, for messages and keys.
        folder: looked through at any depth.
        spec: whose grid and values the images take.
        bring: the way of the data to its grid, where it has one for images of the kind.
        limit: the most images, evenly spread over the files in the order of their paths; None: all.
        option: that gave the folder, for messages; None: --others with the name.
    """
    option = option or f"--others.{name}"
    if spec.channels != 1:
        raise InputError(
            f"{option}: files have one channel, but the model's images have {spec.channels}; leave it out."
        )
    if not folder.is_dir():
        raise MissingDataError(f"{option}: no folder '{folder}'.")
    files = sorted(_listed(folder), key=lambda image: image[0])
    if not files:
        raise MissingDataError(f"{option} {folder}: no images there; expected {', '.join(SUFFIXES)} or DICOM.")
    num = len(files) if limit is None else min(limit, len(files))
    files = [files[i * len(files) // num] for i in range(num)]
    images = torch.stack([_read(option, image, spec, bring) for image in files])
    names = [image[0].relative_to(folder) for image in files]
    keys = [f"{name}-{hashlib.sha256(str(path).encode()).hexdigest()[:16]}" for path in names]
    people = [f"{name} {path.parts[0]}" if len(path.parts) > 1 else "" for path in names]
    return Images(keys, people, Images.of(images).read)


def _listed(folder: Path) -> Iterator[list[Path]]:
    """The files of each image: one, or those of a DICOM series; hidden ones are passed over."""
    series: dict[Path, list[Path]] = {}
    for path in sorted(folder.rglob("[!.]*")):
        suffix = path.suffix.lower()
        if not path.is_file():
            continue
        if path.name.lower().endswith(SUFFIXES):
            yield [path]
        elif suffix in DICOM_SUFFIXES:
            series.setdefault(path.parent, []).append(path)
    for files in series.values():
        yield from group_by_series(files)


def _read(option: str, files: Sequence[Path], spec: DataSpec, bring: Bring) -> Tensor:
    """1 *size in [-1, 1]; InputError, which names the file, if it is no such image."""
    dim, dicom = len(spec.size), files[0].suffix.lower() in DICOM_SUFFIXES
    try:
        voxels, affine = read_image(list(files) if dicom else files[0], flat=dim == 2)
        if not np.isfinite(voxels).all():
            raise ValueError("voxels that are NaN or infinite; expected finite values")
        if (brought := bring(voxels, affine)) is not None:
            return torch.from_numpy(brought)[None].float()
        if voxels.ndim < dim:
            raise ValueError(f"a 2D image of {voxels.shape}; the model makes volumes")
        spacing = np.linalg.norm(affine[: voxels.ndim, : voxels.ndim], axis=0)
        if dim == 2 and voxels.ndim == 3:
            voxels, spacing = np.flip(voxels[..., voxels.shape[-1] // 2], backward(spec.orientation)), spacing[:2]
        return fitted(torch.from_numpy(_in_range(voxels, spec, dicom)), spacing, spec)[None]
    except (OSError, ValueError) as error:
        raise InputError(f"{option}: {files[0]}: {describe(error)}.") from error


def _in_range(voxels: np.ndarray, spec: DataSpec, dicom: bool) -> np.ndarray:
    """Values in [-1, 1], float32; ValueError where all are the same."""
    levels = voxels.min() >= 0 and voxels.max() <= WHITE and bool((voxels == voxels.round()).all())
    if spec.intensity_unit == "8 bit" and levels:
        low, high = 0.0, float(WHITE)
    elif spec.intensity_unit == "HU" and dicom:
        low, high = spec.intensity_window
    else:
        low, high = map(float, np.percentile(voxels, PERCENTILES))
    if low >= high:
        raise ValueError(f"all but a few voxels are {low:g}; expected an image")
    return np.asarray(((voxels - low) / (high - low)).clip(0, 1) * 2 - 1, dtype=np.float32)


def fitted(image: Tensor, spacing: Sequence[float] | np.ndarray, spec: DataSpec) -> Tensor:
    """The image, *t -> *size, scaled into the middle of the grid with its sides in their true ratio; -1 around it.

    Args:
        image: values in [-1, 1].
        spacing: size of its voxels along each axis, in any unit.
        spec: size and spacing of the grid.
    """
    sides_mm = np.array(image.shape) * spacing
    grid_mm = np.array(spec.size) * spec.spacing_mm
    scale = (grid_mm / sides_mm).min()
    size = [max(1, round(side)) for side in (sides_mm * scale / spec.spacing_mm).tolist()]
    inner = functional.interpolate(image[None, None], size=size, mode="area")[0, 0]
    grid = torch.full(tuple(spec.size), -1.0)
    starts = [(whole - part) // 2 for whole, part in zip(spec.size, size, strict=True)]
    grid[tuple(slice(start, start + part) for start, part in zip(starts, size, strict=True))] = inner
    return grid
