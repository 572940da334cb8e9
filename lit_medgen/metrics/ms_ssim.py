r"""Multi-scale structural similarity (MS-SSIM) of all pairs of images.

MS-SSIM (Wang, Simoncelli, Bovik 2003) is prod_j cs_j^beta_j times the luminance term of the coarsest scale, with
local means and variances under a Gaussian window and scales a factor of 2 apart. Means and variances belong to
one image, only the covariance to a pair, so all pairs of n images cost n passes for the former and n^2 for the
latter alone.

Small volumes have room for fewer scales: the window is 11 voxels (sigma 1.5) where five scales fit, else 7, and
scales that are smaller than the window are left out, their exponents with them (the rest is scaled to sum to 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy

import torch
from torch import Tensor
from torch.nn import functional

BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
C1, C2 = 0.01**2, 0.03**2  # for values in [0, 1]
TILE_VOXELS = 2**21
"""Images and pairs are worked on in tiles of about this many voxels (8 MiB in float32): larger ones leave the cache."""
MARGIN = 1 - 1e-5
"""Rounding of the same product in another order must not lose the pair that set the mark."""
BLOCK_VOXELS = 2**27
"""Images are taken in blocks of about this many voxels, whose moments at all scales fill about 2 GiB."""


def scales_and_window(size: tuple[int, ...], most: int = len(BETAS)) -> tuple[int, int]:
    """How many scales fit an image of this size, and the window's side; `most` of 1 makes it SSIM."""
    window = 11 if min(size) // 2 ** (most - 1) >= 11 else 7
    fitting = [j + 1 for j in range(most) if min(size) // 2**j >= window]
    if not fitting:
        raise ValueError(f"images of {size} are too small for MS-SSIM; every side must be at least {window}.")
    return fitting[-1], window


def pairwise_ms_ssim(x: Tensor, y: Tensor, most: int = len(BETAS)) -> Tensor:
    """n m: MS-SSIM of every x (n c *s) with every y (m c *s), both in [-1, 1], of at most so many scales."""
    rows = []
    for some_x in _blocks(x):
        columns = [
            torch.stack([scales.similarity(i) for i in range(len(some_x))]) for scales in _faced(some_x, y, most)
        ]
        rows.append(torch.cat(columns, dim=1))
    return torch.cat(rows)


def nearest_by_ms_ssim(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """For every x (n c *s) the place and the MS-SSIM of the y (m c *s) most like it: n each.

    MS-SSIM is a product of terms that are at most 1, so those of the coarse scales, which cost little, bound it from
    above: a pair whose bound falls below what another pair has reached is looked at no closer. The answer is exact.
    """
    places, values = torch.zeros(len(x), dtype=torch.long, device=x.device), x.new_full((len(x),), -1)
    row = 0
    for some_x in _blocks(x):
        column = 0
        for scales in _faced(some_x, y):
            for i in range(len(some_x)):
                place, value = scales.nearest(i, values[row + i])
                if value > values[row + i]:
                    places[row + i], values[row + i] = column + place, value
            column += scales.num_y
        row += len(some_x)
    return places, values


def _blocks(images: Tensor) -> tuple[Tensor, ...]:
    return images.split(max(1, BLOCK_VOXELS // images[0].numel()))


def _faced(x: Tensor, y: Tensor, most: int = len(BETAS)) -> Iterator[Scales]:
    """The same x with one block of y after the other."""
    scales = None
    for some_y in _blocks(y):
        scales = scales.facing(some_y) if scales else Scales(x, some_y, most)
        yield scales


class Scales:
    """Two sets of images at every scale, with their local means and variances: what belongs to one image, once.

    Args:
        x: n c *s in [-1, 1].
        y: m c *s in [-1, 1].
        most: scales, if so many fit.
        dtype: precision of the computation.
    """

    def __init__(self, x: Tensor, y: Tensor, most: int = len(BETAS), dtype: torch.dtype = torch.float32) -> None:
        self.num, self.window = scales_and_window(tuple(x.shape[2:]), most)
        self.betas = [beta / sum(BETAS[: self.num]) for beta in BETAS[: self.num]]
        self.dtype = dtype
        self.num_y, self.x, self.y = len(y), self._moments(x), self._moments(y)

    def facing(self, y: Tensor) -> Scales:
        """The same x with other y."""
        other = copy(self)
        other.num_y, other.y = len(y), self._moments(y)
        return other

    def _moments(self, images: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Images, local means and local variances at every scale, the finest first."""
        n, c, *size = images.shape
        moments = []
        for _ in range(self.num):
            valid = [side - self.window + 1 for side in size]
            image, mean, variance = (images.new_empty((n, c, *s), dtype=self.dtype) for s in (size, valid, valid))
            moments.append((image, mean, variance))
            size = [side // 2 for side in size]
        pool = functional.avg_pool3d if images.ndim == 5 else functional.avg_pool2d
        tile = max(1, TILE_VOXELS // images[0].numel())
        for k in [slice(start, start + tile) for start in range(0, n, tile)]:
            some = (images[k].to(self.dtype) + 1) / 2
            for j, (image, mean, variance) in enumerate(moments):
                some = pool(some, 2) if j else some
                average = _blur(some, self.window)
                image[k], mean[k], variance[k] = some, average, _blur(some * some, self.window) - average**2
        return moments

    def nearest(self, i: int, reached: Tensor) -> tuple[Tensor, Tensor]:
        """Place and MS-SSIM of the y most like x[i], if it is above `reached`; else any place with at most that."""
        left = torch.arange(self.num_y, device=reached.device)
        bound, best = torch.ones(self.num_y, device=reached.device), left[0]
        for j in reversed(range(1, self.num)):
            bound[left] *= self.term(i, left, j)
            if j == self.num // 2:
                likely = left[bound[left].argmax()]
                best, reached = _better(best, reached, likely[None], self.similarity(i, likely[None]))
            if j <= self.num // 2:
                left = left[bound[left] >= reached * MARGIN]
        left = left[bound[left].argsort(descending=True)]
        num = 1
        while len(left):  # the most promising first, then more and more at once
            some, left = left[:num], left[num:]
            best, reached = _better(best, reached, some, bound[some] * self.term(i, some, 0))
            left = left[bound[left] >= reached * MARGIN]
            num *= 2
        return best, reached

    def similarity(self, i: int, places: Tensor | None = None) -> Tensor:
        """MS-SSIM of x[i] with y[places], or with every y."""
        if places is None:
            places = torch.arange(self.num_y, device=self.x[0][0].device)
        return torch.stack([self.term(i, places, j) for j in range(self.num)]).prod(0)

    def term(self, i: int, places: Tensor, scale: int) -> Tensor:
        """The factor of one scale, at most 1: cs^beta, with the luminance at the coarsest."""
        x, mean_x, variance_x = (moment[i] for moment in self.x[scale])
        parts = []
        for k in places.split(max(1, TILE_VOXELS // x.numel())):
            y, mean_y, variance_y = (moment[k] for moment in self.y[scale])
            value = (2 * (_blur(x * y, self.window) - mean_x * mean_y) + C2) / (variance_x + variance_y + C2)
            if scale == self.num - 1:
                value = value * (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
            parts.append(value.flatten(1).mean(1))
        found = torch.cat(parts)
        return found if self.num == 1 else found.clamp(min=0) ** self.betas[scale]  # SSIM may be negative


def _better(best: Tensor, reached: Tensor, places: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The place and value reached so far, or the best of these."""
    place = values.argmax()
    return (places[place], values[place]) if values[place] > reached else (best, reached)


def _blur(x: Tensor, window: int, sigma: float = 1.5) -> Tensor:
    """Gaussian window along every spatial axis, valid places only: n c *s -> n c *(s - window + 1)."""
    offset = torch.arange(window, dtype=torch.float64) - window // 2
    weights = torch.exp(-(offset**2) / (2 * sigma**2))
    first, *others = (weights / weights.sum()).tolist()
    for axis in range(2, x.ndim):
        # Sums of shifted copies: on a CPU three times as fast as a product with a banded matrix at 128^3.
        length = x.shape[axis] - window + 1
        total = first * x.narrow(axis, 0, length)
        for k, weight in enumerate(others, start=1):
            total.add_(x.narrow(axis, k, length), alpha=weight)
        x = total
    return x
