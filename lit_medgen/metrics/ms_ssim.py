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
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from lit_medgen.batch import Images
from lit_medgen.metrics.known import as_images, numbered_blocks

BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
C1, C2 = 0.01**2, 0.03**2  # for values in [0, 1]
TILE_VOXELS = 2**18
"""On a CPU, images and pairs are worked on in tiles of about this many voxels (1 MiB in float32), which stay in its
cache: at 64^3 twice as fast as with tiles of 8 MiB."""
DEVICE_TILE_VOXELS = 2**25
"""The same on another device, where every operation costs a launch (chosen, not measured)."""
MARGIN = 1 - 1e-5
"""Rounding of the same product in another order must not lose the pair that set the mark."""
BLOCK_VOXELS = 2**25
"""Images are read in blocks of about this many voxels (16 of 128^3), whose moments at all scales fill about 0.5 GiB."""


def scales_and_window(size: tuple[int, ...], max_scales: int = len(BETAS)) -> tuple[int, int]:
    """How many scales fit an image of this size, and the window's side; `max_scales` of 1 makes it SSIM."""
    window = 11 if min(size) // 2 ** (max_scales - 1) >= 11 else 7
    fitting = [j + 1 for j in range(max_scales) if min(size) // 2**j >= window]
    if not fitting:
        raise ValueError(f"images of {size} are too small for MS-SSIM; every side must be at least {window}.")
    return fitting[-1], window


def facts_of(images: Tensor | Images, max_scales: int = len(BETAS)) -> tuple[str, tuple[float, float]]:
    """What the similarity of images is computed from, in words, and its range: of several scales, none is negative."""
    num_scales, window = scales_and_window(tuple(as_images(images).read(range(1)).shape[2:]), max_scales)
    words = f"voxels in [0, 1], scales: {num_scales}, Gaussian window {window} (sigma 1.5)"
    return words, (0.0, 1.0) if num_scales > 1 else (-1.0, 1.0)


def pairwise_ms_ssim(
    x: Tensor | Images,
    y: Tensor | Images,
    max_scales: int = len(BETAS),
    pairs: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """n m: MS-SSIM of every x (n c *s) with every y (m c *s), both in [-1, 1]; where y is x, of each pair once.

    Args:
        x: images.
        y: images.
        max_scales: scales, if so many fit.
        pairs: n m, bool: the pairs that are computed, the others are NaN (symmetric where y is x); None: all.
        device: where blocks of images are worked on; the result is on the CPU.
    """
    itself = y is x
    x = as_images(x)
    y = x if itself else as_images(y)
    pairs = torch.ones(len(x), len(y), dtype=torch.bool) if pairs is None else pairs
    pairs = pairs.triu() if itself else pairs
    similarity = torch.full(pairs.shape, torch.nan)
    for row, some_x in numbered_blocks(x, 4 * BLOCK_VOXELS):
        rows = pairs[row : row + len(some_x)]
        for column, scales in _faced(some_x, y, max_scales, rows, device, row if itself else None):
            for i in range(len(some_x)):
                chosen = rows[i, column : column + scales.num_y].nonzero().flatten()
                if len(chosen):
                    similarity[row + i, column + chosen] = scales.similarity(i, chosen).cpu()
    return torch.where(similarity.isnan(), similarity.T, similarity) if itself else similarity


def nearest_by_ms_ssim(
    x: Tensor | Images, y: Tensor | Images, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """For every x (n c *s) the index and the MS-SSIM of the y (m c *s) most like it: n each.

    MS-SSIM is a product of terms that are at most 1, so those of the coarse scales, which cost little, bound it from
    above: a pair whose bound falls below what another pair has reached is looked at no closer. The answer is exact.
    """
    x, y = as_images(x), as_images(y)
    nearest, values = torch.zeros(len(x), dtype=torch.long), torch.full((len(x),), -1.0)
    for row, some_x in numbered_blocks(x, 4 * BLOCK_VOXELS):
        for column, scales in _faced(some_x, y, device=device):
            for i in range(row, row + len(some_x)):
                index, value = scales.nearest(i - row, values[i])
                if value > values[i]:
                    nearest[i], values[i] = column + index, value
    return nearest, values


def _faced(
    x: Tensor,
    y: Images,
    max_scales: int = len(BETAS),
    pairs: Tensor | None = None,
    device: torch.device | str = "cpu",
    itself: int | None = None,
) -> Iterator[tuple[int, Scales]]:
    """The same x with one block of y after the other, each with the index of its first; blocks without pairs left out.

    The block of y that begins at `itself` is x, whose moments serve for both.
    """
    scales = None
    for start, some_y in numbered_blocks(y, 4 * BLOCK_VOXELS):
        if pairs is not None and not pairs[:, start : start + len(some_y)].any():
            continue
        if scales:
            scales.face(some_y)
        else:
            scales = Scales(x, x if start == itself else some_y, max_scales, device=device)
        yield start, scales
    if scales:  # whoever has it still needs its moments no more, and those of the next x need their memory
        scales.x, scales.y = [], []


class Scales:
    """Two sets of images at every scale, with their local means and variances: what belongs to one image, once.

    Args:
        x: n c *s in [-1, 1].
        y: m c *s in [-1, 1].
        max_scales: scales, if so many fit.
        dtype: precision of the computation.
        device: where it happens.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        max_scales: int = len(BETAS),
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num, self.window = scales_and_window(tuple(x.shape[2:]), max_scales)
        self.betas = [beta / sum(BETAS[: self.num]) for beta in BETAS[: self.num]]
        self.dtype, self.device = dtype, torch.device(device)
        self.tile = TILE_VOXELS if self.device.type == "cpu" else DEVICE_TILE_VOXELS
        self.num_y, self.x = len(y), self._moments(x)
        self.y = self.x if y is x else self._moments(y)

    def face(self, y: Tensor) -> None:
        """Takes the moments of another y in the place of those before."""
        self.y = []  # one block of y is in memory at a time
        self.num_y, self.y = len(y), self._moments(y)

    def _moments(self, images: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Images, local means and local variances at every scale, the finest first."""
        n, c, *size = images.shape
        empty, moments = partial(torch.empty, dtype=self.dtype, device=self.device), []
        for _ in range(self.num):
            valid = [side - self.window + 1 for side in size]
            moments.append((empty(n, c, *size), empty(n, c, *valid), empty(n, c, *valid)))
            size = [side // 2 for side in size]
        pool = functional.avg_pool3d if images.ndim == 5 else functional.avg_pool2d
        tile = max(1, self.tile // images[0].numel())
        for k in [slice(start, start + tile) for start in range(0, n, tile)]:
            some = (images[k].to(self.device, self.dtype) + 1) / 2
            for j, (image, mean, variance) in enumerate(moments):
                some = pool(some, 2) if j else some
                average = _blur(some, self.window)
                image[k], mean[k], variance[k] = some, average, _blur(some * some, self.window) - average**2
        return moments

    def nearest(self, i: int, reached: Tensor) -> tuple[Tensor, Tensor]:
        """Index and MS-SSIM of the y most like x[i], if it is above `reached`; else any index with at most that."""
        left = torch.arange(self.num_y)
        bound, best = torch.ones(self.num_y), left[0]
        for j in reversed(range(1, self.num)):
            if not len(left):  # an earlier block of y has reached more than any of this one can
                return best, reached
            bound[left] *= self.term(i, left, j).cpu()
            if j == self.num // 2:
                likely = left[bound[left].argmax()]
                best, reached = _better(best, reached, likely[None], self.similarity(i, likely[None]).cpu())
            if j <= self.num // 2:
                left = left[bound[left] >= reached * MARGIN]
        left = left[bound[left].argsort(descending=True)]
        num = 1
        while len(left):  # the most promising first, then more and more at once
            some, left = left[:num], left[num:]
            best, reached = _better(best, reached, some, bound[some] * self.term(i, some, 0).cpu())
            left = left[bound[left] >= reached * MARGIN]
            num *= 2
        return best, reached

    def similarity(self, i: int, chosen: Tensor | None = None) -> Tensor:
        """MS-SSIM of x[i] with y[chosen] (indices on the CPU), or with every y."""
        chosen = torch.arange(self.num_y) if chosen is None else chosen
        return torch.stack([self.term(i, chosen, j) for j in range(self.num)]).prod(0)

    def term(self, i: int, chosen: Tensor, scale: int) -> Tensor:
        """The factor of one scale, at most 1: cs^beta, with the luminance at the coarsest."""
        x = [moment[i : i + 1] for moment in self.x[scale]]
        parts = []
        for some in chosen.split(max(1, self.tile // x[0].numel())):
            # A run of neighbours is a view, anything else a copy.
            run = bool((some.diff() == 1).all())
            k = slice(int(some[0]), int(some[-1]) + 1) if run else some.to(self.device)
            parts.append(self._mean(x, [moment[k] for moment in self.y[scale]], scale))
        found = torch.cat(parts)
        return found if self.num == 1 else found.clamp(min=0) ** self.betas[scale]  # SSIM may be negative

    def _mean(self, x: list[Tensor], y: list[Tensor], scale: int) -> Tensor:
        """m: mean over an image of the similarity of one x and m y at a scale, from images, means and variances."""
        num_valid, plane = x[1].shape[2], x[0][0, :, 0].numel()
        rows = max(1, self.tile // plane)
        total = torch.zeros((), dtype=self.dtype, device=self.device)
        for start in range(0, num_valid, rows):  # an image larger than a tile in slabs
            wide = slice(start, min(start + rows, num_valid) + self.window - 1)
            slab = slice(start, start + rows)
            mean_x, variance_x, mean_y, variance_y = (part[:, :, slab] for part in (*x[1:], *y[1:]))
            value = _blur(x[0][:, :, wide] * y[0][:, :, wide], self.window).addcmul_(mean_x, mean_y, value=-1)
            value = value.add_(C2 / 2).mul_(2).div_((variance_x + variance_y).add_(C2))
            if scale == self.num - 1:
                value = value * (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
            total = total + value.flatten(1).sum(1)
        return total / x[1][0].numel()


def _better(best: Tensor, reached: Tensor, chosen: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The index and value reached so far, or the best of these."""
    first = values.argmax()
    return (chosen[first], values[first]) if values[first] > reached else (best, reached)


def _blur(x: Tensor, window: int, sigma: float = 1.5) -> Tensor:
    """Gaussian window along every spatial axis, without a border: n c *s -> n c *(s - window + 1)."""
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
