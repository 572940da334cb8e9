"""Volumes from one grid onto another."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import ndimage


def resample(voxels: np.ndarray, affine: np.ndarray, size: tuple[int, ...], target: np.ndarray) -> np.ndarray:
    """Linear interpolation onto a grid, float32; smoothed first along axes that lose resolution.

    The Gaussian has the width that turns a box of the old voxel into one of the new, so that fine detail is
    averaged rather than aliased (the usual anti-aliasing of image pyramids).
    """
    to_source = np.linalg.inv(affine) @ target
    coarser = np.linalg.norm(to_source[:-1, :-1], axis=1)  # new voxels, measured in old ones, along old axes
    sigma = np.sqrt(np.maximum(coarser**2 - 1, 0) / 12)
    smooth = ndimage.gaussian_filter(voxels.astype(np.float32), sigma, mode="nearest") if sigma.any() else voxels
    return _moved(smooth.astype(np.float32), to_source, size, order=1)


def resample_classes(
    labels: np.ndarray, affine: np.ndarray, size: tuple[int, ...], target: np.ndarray, classes: Mapping[int, str]
) -> np.ndarray:
    """The label map on another grid (`size`, affine `target`) by nearest neighbour, uint8; 0 outside.

    Voxels hold the value of a class and become its number among `classes`; ValueError if a voxel is none of them.
    """
    values, counts = np.unique(labels, return_counts=True)
    numbers = {value: number for number, value in enumerate(classes)}
    unknown = [
        f"{value:g} ({count} voxels)"
        for value, count in zip(values.tolist(), counts, strict=True)
        if value not in numbers
    ]
    if unknown:
        names = ", ".join(f"{value} {name}" for value, name in classes.items())
        raise ValueError(f"values that are no class: {', '.join(unknown[:8])}; expected whole numbers, {names}")
    mapped = labels.astype(np.uint8)
    for value in values[[numbers[each] != each for each in values.tolist()]]:
        mapped[labels == value] = numbers[value]
    return _moved(mapped, np.linalg.inv(affine) @ target, size, order=0)


def _moved(voxels: np.ndarray, to_source: np.ndarray, size: tuple[int, ...], order: int) -> np.ndarray:
    # SciPy is zero beyond the outermost centres, so rounding, or a finer grid, would leave a dark rim: repeat the edge.
    padded = np.pad(voxels, 1, mode="edge")
    moved: np.ndarray = ndimage.affine_transform(
        padded, to_source[:-1, :-1], to_source[:-1, -1] + 1, output_shape=tuple(size), order=order
    )
    return moved


def one_slice(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A volume of one slice as a 2D image, in mm along its own sides; the second axis goes down, as in every image."""
    axis = voxels.shape.index(1)
    sides = np.delete(np.linalg.norm(affine[:3, :3], axis=0), axis)
    return np.take(voxels, 0, axis)[:, ::-1], np.diag([*sides, 1.0])


def affine_of(dim: int, affine: np.ndarray) -> np.ndarray:
    """The affine of 3D images as that of 2D images (3 3), or the other way round."""
    shared = min(dim, len(affine) - 1)
    full = np.eye(dim + 1)
    full[:shared, :shared], full[:shared, dim] = affine[:shared, :shared], affine[:shared, -1]
    return full
