"""Images on coarser and finer grids of the same field of view: block means, and interpolation between voxels.

Voxel i of an axis of length m covers [i / m, (i + 1) / m] of it, so grids of any two lengths share their ends, not the
centres of their first voxels. Shapes: b batch, c channels, *s spatial axes, *l those of the coarser grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, avg_pool3d, interpolate

Interpolation = Literal["linear", "cubic"]


def block_means(images: Tensor, factor: Sequence[int]) -> Tensor:
    """The mean of each block of so many voxels along each axis; b c *s -> b c *l, with s = factor l.

    ValueError where blocks do not fill an axis.
    """
    size = tuple(images.shape[2:])
    if len(factor) != len(size) or any(side % each for side, each in zip(size, factor, strict=True)):
        raise ValueError(f"blocks of {tuple(factor)} voxels do not fill images of {size}; give divisors of each side.")
    pool = {2: avg_pool2d, 3: avg_pool3d}[len(size)]
    means: Tensor = pool(images, tuple(factor), tuple(factor))
    return means


def interpolated(images: Tensor, size: Sequence[int], kind: Interpolation) -> Tensor:
    """Images on a grid of another size, axis by axis; b c *l -> b c *s.

    "linear" is bi- or trilinear, with the values of the outermost voxels beyond their centres. "cubic" is the
    convolution of Keys (1981, "Cubic Convolution Interpolation for Digital Image Processing", eq. 15; a = -1/2), which
    may leave the range of the values.
    """
    for axis, length in enumerate(size, start=2):
        moved = images.movedim(axis, -1)
        rows = moved.reshape(1, 1, -1, moved.shape[-1])  # a plane whose other axis keeps its length, and so its values
        mode, keys = ("bicubic", True) if kind == "cubic" else ("bilinear", False)  # PyTorch has a = -1/2 there alone
        found = interpolate(rows, (rows.shape[2], length), mode=mode, align_corners=False, antialias=keys)
        images = found.reshape(*moved.shape[:-1], length).movedim(-1, axis)
    return images.contiguous()


def finer_affine(affine: Tensor, coarse: Sequence[int], fine: Sequence[int]) -> Tensor:
    """Voxel to world in mm of a grid, ... 4 4, from that of another one with the same field of view; 2D: axes x y."""
    change = torch.eye(4, dtype=affine.dtype)
    for axis, (few, many) in enumerate(zip(coarse, fine, strict=True)):
        change[axis, axis] = few / many
        change[axis, 3] = (few / many - 1) / 2  # the centre of the first voxel, in voxels of the coarse grid
    return affine @ change
