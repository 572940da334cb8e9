"""How often images of any size can be halved, for networks that begin or end on a coarse grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

MIN_SIDE = 4
"""Voxels of the shortest side of the coarsest grid: 64^3 voxels are halved four times, to 4^3, in the public code."""
MAX_SIDE = 16
"""A coarsest grid longer than this would make its dense layer most of the network; images are padded instead."""
BACKGROUND = -1.0
"""What images are padded with: the darkest value."""


@dataclass(frozen=True)
class Halvings:
    """How an image is halved down to a coarse grid, and doubled again.

    Attributes:
        size: voxels of the image along each axis.
        num: how often it is halved.
        grid: voxels of the coarsest grid along each axis.
    """

    size: tuple[int, ...]
    num: int
    grid: tuple[int, ...]

    @classmethod
    def of(cls, size: Sequence[int]) -> Halvings:
        """The most halvings that leave at least 4 voxels of the shortest side and divide every side.

        Where those leave a coarsest grid of more than 16 voxels, such as that of odd sides, images are padded to
        multiples of a larger power of two instead.

        Raises:
            ValueError: not 2 or 3 sides, or one of fewer than 8 voxels.
        """
        if len(size) not in (2, 3) or min(size) < 2 * MIN_SIDE:
            raise ValueError(f"size is {list(size)}; give 2 or 3 sides of at least {2 * MIN_SIDE} voxels.")
        most = (min(size) // MIN_SIDE).bit_length() - 1
        num = max((n for n in range(most + 1) if all(side % 2**n == 0 for side in size)), default=0)
        if min(size) // 2**num > MAX_SIDE:
            num = most
        return cls(tuple(size), num, tuple(-(-side // 2**num) for side in size))

    @property
    def dim(self) -> int:
        """Axes of the image, 2 or 3."""
        return len(self.size)

    def padded(self, image: Tensor) -> Tensor:
        """The image in the middle of darkness, so that it can be halved; b c *s -> b c 2^num *grid.

        Raises:
            ValueError: it is of another size.
        """
        if tuple(image.shape[2:]) != self.size:
            raise ValueError(
                f"size is {list(self.size)}, but images are {list(image.shape[2:])}; set one to the other."
            )
        margins = [side for before, after in reversed(self._margins()) for side in (before, after)]
        return functional.pad(image, margins, value=BACKGROUND) if any(margins) else image

    def cropped(self, image: Tensor) -> Tensor:
        """The middle of an image, of the size that was padded; b c 2^num *grid -> b c *s."""
        for axis, (side, (before, _)) in enumerate(zip(self.size, self._margins(), strict=True), start=2):
            image = image.narrow(axis, before, side)
        return image

    def _margins(self) -> list[tuple[int, int]]:
        """Voxels before and after the image along each axis."""
        missing = [coarse * 2**self.num - side for coarse, side in zip(self.grid, self.size, strict=True)]
        return [(each // 2, each - each // 2) for each in missing]
