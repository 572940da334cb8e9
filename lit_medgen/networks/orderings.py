"""Orders in which the codes of a map are made, one after the other, in 2D and 3D.

A transformer that predicts codes one by one sees a map as a sequence. Which neighbours of a code stand close before it
depends on the order: rows (raster), rows of alternating direction (snake), a Hilbert curve, whose parts fill squares or
cubes, or none at all (random).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor

Point = tuple[int, ...]


@dataclass(frozen=True)
class Ordering:
    """An order of the positions of a map.

    Attributes:
        kind: `raster`: the last axis fastest; `snake`: the same, each row in the direction opposite to the one before,
            so that consecutive positions touch, in 3D too; `hilbert`: a Hilbert curve, for sides that are one power of
            two; `random`: shuffled by the seed.
        transpose: order in which the axes are taken, the slowest first; None: as they are.
        reflect: axes along which it runs backwards.
        seed: of a random order.
    """

    kind: Literal["raster", "snake", "hilbert", "random"] = "raster"
    transpose: Sequence[int] | None = None
    reflect: Sequence[int] = ()
    seed: int = 0

    def positions(self, size: Sequence[int]) -> Tensor:
        """The positions of a map of this size in their order, as indices of the flattened map; n, int64.

        Raises:
            ValueError: axes that the map does not have, or sides that a Hilbert curve does not fill.
        """
        axes = tuple(range(len(size))) if self.transpose is None else tuple(self.transpose)
        if sorted(axes) != list(range(len(size))) or not set(self.reflect) <= set(axes):
            raise ValueError(
                f"ordering: transpose is {self.transpose} and reflect {list(self.reflect)}, but maps have axes 0 to "
                f"{len(size) - 1}; name each once in transpose, and some of them in reflect."
            )
        taken = [size[axis] for axis in axes]
        points = torch.tensor(self._points(taken))
        coordinates = torch.empty_like(points)
        coordinates[:, list(axes)] = points
        for axis in self.reflect:
            coordinates[:, axis] = size[axis] - 1 - coordinates[:, axis]
        strides = torch.tensor([math.prod(size[axis + 1 :]) for axis in range(len(size))])
        return (coordinates * strides).sum(1)

    def _points(self, size: Sequence[int]) -> list[Point]:
        if self.kind == "snake":
            return snake(size)
        if self.kind == "hilbert":
            return hilbert(size)
        points = list(product(*map(range, size)))
        if self.kind == "raster":
            return points
        shuffled = torch.randperm(len(points), generator=torch.Generator().manual_seed(self.seed))
        return [points[i] for i in shuffled.tolist()]


def snake(size: Sequence[int]) -> list[Point]:
    """The points of a grid, row after row in alternating directions: each touches the one before."""
    if not size:
        return [()]
    rows = snake(size[1:])
    return [(i, *row) for i in range(size[0]) for row in (rows[::-1] if i % 2 else rows)]


def hilbert(size: Sequence[int]) -> list[Point]:
    """The points of a square or cube along a Hilbert curve: each touches the one before.

    ValueError unless its sides are one power of two.
    """
    if len(set(size)) > 1 or size[0].bit_count() != 1:
        raise ValueError(
            f"ordering: a Hilbert curve fills maps whose sides are one power of two, not {' x '.join(map(str, size))}; "
            "take snake, or images of another size."
        )
    bits = size[0].bit_length() - 1
    return [_hilbert_point(index, bits, len(size)) for index in range(math.prod(size))]


def _hilbert_point(index: int, bits: int, dim: int) -> Point:
    """A point of the curve by its number (Skilling 2004, "Programming the Hilbert curve")."""
    x = [0] * dim
    for bit in range(bits * dim):  # the bits of the number, dealt out to the axes
        x[dim - 1 - bit % dim] |= (index >> bit & 1) << bit // dim
    last = x[-1] >> 1
    for axis in range(dim - 1, 0, -1):  # Gray code
        x[axis] ^= x[axis - 1]
    x[0] ^= last
    for bit in range(1, bits):  # undo exchanges and inversions, the coarse ones last
        low = (1 << bit) - 1
        for axis in range(dim - 1, -1, -1):
            if x[axis] >> bit & 1:
                x[0] ^= low
            else:
                swap = (x[0] ^ x[axis]) & low
                x[0] ^= swap
                x[axis] ^= swap
    return tuple(x)
