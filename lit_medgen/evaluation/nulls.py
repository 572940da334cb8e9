"""Nulls of a report: images that know the training people only superficially, and that any model must beat.

`DEFINITIONS` says what each is. None of them needs all training images in memory at once: moments are summed up block
by block, and principal components come from the scalar products of all pairs of images, which other scores need too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lit_medgen.batch import Images
from lit_medgen.metrics.known import Known, blocks, centred, numbered_blocks, products

NUM_COMPONENTS = 10
ROWS = 8
"""Images that are worked on at once, in float64."""

DEFINITIONS = {
    "noise": "independent normal voxels with the mean and the spread of the training images",
    "mean+noise": "the mean training image, with independent noise of every voxel's own spread",
    "pca_gaussian": f"a Gaussian with the {NUM_COMPONENTS} leading principal components of the training images",
    "prior": "the model's own prior, without its network",
}
"""What each null is, for the report."""


@dataclass(frozen=True)
class Moments:
    """Mean and spread of images.

    Attributes:
        mean: c *s, of every voxel, float64.
        spread: c *s, its standard deviation, float64.
        grand_mean: of all voxels of all images.
        grand_spread: their standard deviation.
    """

    mean: Tensor
    spread: Tensor
    grand_mean: float
    grand_spread: float

    @classmethod
    def of(cls, images: Images) -> Moments:
        """Block by block (Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance", eq. 2.1)."""
        num, mean, squares = 0, torch.zeros(()).double(), torch.zeros(()).double()
        for some in blocks(images, 4 * ROWS * images.read(range(1)).numel()):
            values = some.double()
            here = values.mean(0)
            apart, total = here - mean, num + len(values)
            squares = squares + (values - here).square().sum(0) + apart**2 * (num * len(values) / total)
            mean, num = mean + apart * (len(values) / total), total
        within, between = squares.sum(), num * (mean - mean.mean()).square().sum()
        spread = (squares / max(num - 1, 1)).sqrt()
        return cls(mean, spread, float(mean.mean()), float(((within + between) / (num * mean.numel() - 1)).sqrt()))


@dataclass(frozen=True)
class Components:
    """Leading principal components of images.

    Attributes:
        directions: k d, orthonormal, of flattened images, float64; the largest entry of each is positive.
        spreads: k, standard deviation of the images along each.
    """

    directions: Tensor
    spreads: Tensor


def principal_components(images: Images, known: Known) -> Components:
    """At most `NUM_COMPONENTS`, exactly.

    With the centred images X (n d), X X^T = V L V^T has as many eigenvalues as there are images, and the directions are
    the rows of L^-1/2 V^T X (Turk & Pentland 1991, "Eigenfaces for Recognition", eq. 6).
    """
    gram = centred(4 * known(products, images, images, known.device))  # in [0, 1] differences are halved
    num = min(NUM_COMPONENTS, len(images) - 1)
    values, vectors = (part.flip(-1)[..., :num] for part in torch.linalg.eigh(gram))
    directions = torch.zeros(()).double()
    for row, some in numbered_blocks(images, 4 * ROWS * images.read(range(1)).numel()):
        directions = directions + vectors[row : row + len(some)].T @ some.flatten(1).double()  # V is centred already
    directions = directions / directions.norm(dim=1, keepdim=True).clamp(min=1e-12)
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return Components(directions * largest.sign(), (values.clamp(min=0) / max(len(images) - 1, 1)).sqrt())


def null_makers(
    train: Images, num: int, components: Components, prior: Callable[[Sequence[int]], Tensor | None] | None = None
) -> dict[str, Iterator[Tensor]]:
    """Name -> what makes `num` images of a null (n c *s in [-1, 1]), a few at a time.

    Args:
        train: images of the training people.
        num: how many.
        components: of the training images.
        prior: seeds -> what the model makes of its prior alone, if it has one: a null of its own.
    """
    moments = Moments.of(train)
    shape = moments.mean.shape
    starts = range(0, num, ROWS)

    def noise(mean: Tensor | float, spread: Tensor | float) -> Iterator[Tensor]:
        random = torch.Generator().manual_seed(0)
        for start in starts:
            images = torch.randn((min(ROWS, num - start), *shape), generator=random)
            yield images.mul_(spread).add_(mean).clamp_(-1, 1)

    def gaussian() -> Iterator[Tensor]:
        draws = torch.from_numpy(np.random.default_rng(0).normal(size=(num, len(components.spreads))))
        for start in starts:
            rows = (draws[start : start + ROWS] * components.spreads) @ components.directions
            yield (rows.view(-1, *shape) + moments.mean).float().clamp(-1, 1)

    nulls = {
        "noise": noise(moments.grand_mean, moments.grand_spread),
        "mean+noise": noise(moments.mean.float(), moments.spread.float()),
        "pca_gaussian": gaussian(),
    }
    if prior is None or prior([0]) is None:
        return nulls
    return nulls | {"prior": (prior(range(num)[start : start + ROWS]).float().cpu() for start in starts)}  # type: ignore[union-attr]
