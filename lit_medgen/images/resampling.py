"""Images on coarser and finer grids of the same field of view: block means, and interpolation between voxels.

Voxel i of an axis of length m covers [i / m, (i + 1) / m] of it, so grids of any two lengths share their ends, not the
centres of their first voxels. Shapes: b batch, c channels, *s spatial axes, *l those of the coarser grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, avg_pool3d

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
    """Images on a grid of another size, axis by axis, in float32; b c *l -> b c *s.

    "linear" is bi- or trilinear; "cubic" is the convolution of Keys (1981, "Cubic Convolution Interpolation for Digital
    Image Processing", section III; a = -1/2), which may leave the range of the values. Beyond the centres of the
    outermost voxels images go on with their values.
    """
    with torch.autocast(images.device.type, enabled=False):
        for axis, length in enumerate(size, start=2):
            weights = _weights(images.shape[axis], length, KERNELS[kind], images.device)
            images = (images.float().movedim(axis, -1) @ weights.T).movedim(-1, axis)
    return images.contiguous()


def _weights(few: int, many: int, kernel: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
    """What each voxel of an axis takes from those of the same axis on another grid; many few.

    A sum of products rather than a scatter, whose order, and so whose rounding, a GPU leaves open.
    """
    place = (torch.arange(many, device=device) + 0.5) * (few / many) - 0.5  # in voxels of the other grid
    neighbours = place.floor()[:, None] + torch.arange(-1, 3, device=device)
    taken = neighbours.clamp(0, few - 1)[..., None] == torch.arange(few, device=device)
    return (kernel((place[:, None] - neighbours).abs())[..., None] * taken).sum(1)


def _hat(distance: Tensor) -> Tensor:
    """The weight of a voxel at a distance in voxels, linearly falling to 0 at 1."""
    return (1 - distance).clamp(min=0)


def _keys(distance: Tensor) -> Tensor:
    """The weight of a voxel at a distance in voxels up to 2 (Keys 1981, eq. 15)."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, far.where(distance < 2, 0.0))


KERNELS: dict[Interpolation, Callable[[Tensor], Tensor]] = {"linear": _hat, "cubic": _keys}
"""Kind of interpolation -> the weight of a voxel by its distance."""


def finer_affine(affine: Tensor, coarse: Sequence[int], fine: Sequence[int]) -> Tensor:
    """Voxel to world in mm of a grid, ... 4 4, from that of another one with the same field of view; 2D: axes x y."""
    change = torch.eye(4, dtype=affine.dtype)
    for axis, (few, many) in enumerate(zip(coarse, fine, strict=True)):
        change[axis, axis] = few / many
        change[axis, 3] = (few / many - 1) / 2  # the centre of the first voxel, in voxels of the coarse grid
    return affine @ change
