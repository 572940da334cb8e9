"""Where the nodules of a label map lie. Shapes: b images, *s their spatial axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

NODULE = "nodule"
"""Names of the classes that are nodules begin with it."""


def nodule_classes(classes: Sequence[str]) -> list[int]:
    """The numbers of the classes that are nodules."""
    return [number for number, name in enumerate(classes) if name.startswith(NODULE)]


def inside_nodules(label_map: Tensor, classes: Sequence[int]) -> Tensor:
    """Which voxels are of one of these classes, bool, of the shape of the label map; without a wait for its device."""
    inside = torch.zeros_like(label_map, dtype=torch.bool)
    for number in classes:
        inside |= label_map == number
    return inside


def largest_nodule(inside: np.ndarray) -> np.ndarray | None:
    """The middle of the largest connected part of a mask *s, in voxels, one number for each axis; None of an empty one.

    Voxels that touch at a corner are connected, as those of an oblique thin nodule are.
    """
    parts, num = ndimage.label(inside, np.ones((3,) * inside.ndim))
    if not num:
        return None
    largest = np.bincount(parts.ravel())[1:].argmax() + 1
    return np.asarray(ndimage.center_of_mass(parts == largest))


def dilated(inside: Tensor, side: int) -> Tensor:
    """A mask b 1 *s, bool, grown by a square (or cube) of that odd side, which is a max-pooling of stride 1."""
    return _pooled(inside, side, 1, side // 2)


def coarse(inside: Tensor, factor: int) -> Tensor:
    """A mask b 1 *s, bool, in blocks of so many voxels along each axis; a block with a voxel inside is inside."""
    return _pooled(inside, factor, factor, 0)


def _pooled(inside: Tensor, side: int, stride: int, padding: int) -> Tensor:
    pool = functional.max_pool2d if inside.ndim == 4 else functional.max_pool3d
    return pool(inside.float(), side, stride, padding) > 0
