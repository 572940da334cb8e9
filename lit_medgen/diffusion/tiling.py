"""Denoising an image larger than a network was trained on, tile by tile, in every step.

Overlapping tiles of x_t are denoised one after the other, and their x̂ averaged with weights that fall to the border of
a tile, inside each step of the sampler (as Bar-Tal et al. 2023, "MultiDiffusion", eq. 5, does with the least squares of
all tiles). All tiles share one noise, and what one tile decides the next step of its neighbours sees, so there are no
seams; tiles that were sampled by themselves would each decide alone. What a condition holds of the image, a source or a
label map, is cut at the same place. Shapes: b batch, c channels, *s spatial axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from lit_medgen.batch import Condition
from lit_medgen.diffusion.guidance import Guidance

Window = tuple[slice, ...]


@dataclass(frozen=True)
class Tiled(Guidance):
    """A denoiser of images of any size, that sees tiles of one size.

    Attributes:
        denoiser: what denoises a tile.
        tile: voxels of a tile along each axis; images that are shorter along an axis are one tile there.
        overlap: share of a tile's side, at least, that it has in common with the next, from 0 to below 1.
    """

    tile: tuple[int, ...] = ()
    overlap: float = 0.25

    def __post_init__(self) -> None:
        """ValueError for tiles without voxels, or that do not move on."""
        if not self.tile or min(self.tile) < 1 or not 0 <= self.overlap < 1:
            raise ValueError(
                f"tile is {list(self.tile)} and overlap {self.overlap}; give voxels along each axis, and a share from "
                "0 to below 1."
            )

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """x̂ of the shape of x_t, b c *s; t: b."""
        size = tuple(x_t.shape[2:])
        tile = [min(side, most) for side, most in zip(size, self.tile, strict=True)]
        if list(size) == tile:
            return self.denoiser(x_t, t, condition)
        weight = _weight(tile, x_t.device).to(x_t.dtype)
        total, weights = torch.zeros_like(x_t), torch.zeros_like(x_t[:1, :1])
        for window in windows(size, tile, self.overlap):
            at = (slice(None), slice(None), *window)
            total[at] += weight * self.denoiser(x_t[at], t, cut(condition, window, size))
            weights[at] += weight
        return total / weights


def windows(size: Sequence[int], tile: Sequence[int], overlap: float) -> Iterator[Window]:
    """Windows of one size that cover a grid, evenly spread, with at least that share of a side in common."""
    starts = []
    for side, length in zip(size, tile, strict=True):
        step = max(1, math.floor(length * (1 - overlap)))
        num = 1 + math.ceil((side - length) / step)
        starts.append([round(i * (side - length) / max(1, num - 1)) for i in range(num)])
    for corner in product(*starts):
        yield tuple(slice(first, first + length) for first, length in zip(corner, tile, strict=True))


def cut(condition: Condition, window: Window, size: Sequence[int]) -> Condition:
    """What of a condition belongs to a window of a grid: of source and label map, which may be finer, that place.

    ValueError for one whose voxels do not come in whole numbers for each of the grid's.
    """

    def part(name: str, value: Tensor) -> Tensor:
        places = []
        for side, place, own in zip(size, window, value.shape[2:], strict=True):
            factor, rest = divmod(own, side)
            if rest or not factor:
                raise ValueError(f"{name} has {own} voxels where the image has {side}; give a multiple of that.")
            places.append(slice(place.start * factor, place.stop * factor))
        return value[(slice(None), slice(None), *places)]

    parts: dict[str, Any] = {
        name: part(name, value) for name in ("source", "label_map") if (value := getattr(condition, name)) is not None
    }
    return replace(condition, **parts)


def _weight(tile: Sequence[int], device: torch.device) -> Tensor:
    """Weights of a tile's voxels, *s: a Hann window along each axis, above 0 everywhere.

    A network sees nothing beyond a tile, so what it says at the border counts little: with weights that fall linearly,
    seams are left (tests/diffusion/test_tiling.py).
    """
    weight = torch.ones((), device=device)
    for side in tile:
        weight = weight[..., None] * torch.sin(torch.pi * (torch.arange(side, device=device) + 0.5) / side).square()
    return weight
