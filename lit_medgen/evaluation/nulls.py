"""Nulls of a report: images that know the training people only superficially, and that any model must beat.

`DEFINITIONS` says what each is. None of them needs all training images in memory at once: moments are summed up block
by block, and principal components come from the scalar products of all pairs of images, which other scores need too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_medgen.batch import Images
from lit_medgen.metrics.known import Known, blocks, centred, num_bytes_of_one, numbered_blocks, products

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


class Components(NamedTuple):
    """Leading principal components of images."""

    directions: Tensor
    """k d, orthonormal, of flattened images, float64; the largest entry of each is positive."""
    spreads: Tensor
    """k, standard deviation of the images along each."""


def _moments(images: Images) -> tuple[Tensor, Tensor, float, float]:
    """Mean and standard deviation of every voxel (c *s, float64), and those of all voxels of all images together.

    Block by block (Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance", eq. 2.1).
    """
    num, mean, squares = 0, torch.zeros(()).double(), torch.zeros(()).double()
    for some in blocks(images, ROWS * num_bytes_of_one(images)):
        values = some.double()
        here = values.mean(0)
        apart, total = here - mean, num + len(values)
        squares = squares + (values - here).square().sum(0) + apart**2 * (num * len(values) / total)
        mean, num = mean + apart * (len(values) / total), total
    within, between = squares.sum(), num * (mean - mean.mean()).square().sum()
    spread = (squares / max(num - 1, 1)).sqrt()
    return mean, spread, float(mean.mean()), float(((within + between) / (num * mean.numel() - 1)).sqrt())


def mean_of(images: Images) -> Tensor:
    """The mean of images in [-1, 1], c *s, float64; some at a time."""
    total = torch.zeros(()).double()
    for some in blocks(images, ROWS * num_bytes_of_one(images)):
        total = total + some.double().sum(0)
    return total / len(images)


def principal_components(images: Images, known: Known) -> Components:
    """At most `NUM_COMPONENTS`, exactly.

    With the centred images X (n d), X X^T = V L V^T has as many eigenvalues as there are images, and the directions are
    the rows of L^-1/2 V^T X (Turk & Pentland 1991, "Eigenfaces for Recognition", eq. 6).
    """
    gram = centred(4 * known(products, images, images, known.device))  # in [0, 1] differences are halved
    num = min(NUM_COMPONENTS, len(images) - 1)
    values, vectors = (part.flip(-1)[..., :num] for part in torch.linalg.eigh(gram))
    directions = torch.zeros(()).double()
    for row, some in numbered_blocks(images, ROWS * num_bytes_of_one(images)):
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
    mean, spread, grand_mean, grand_spread = _moments(train)
    starts = range(0, num, ROWS)

    def noise(centre: Tensor | float, width: Tensor | float) -> Iterator[Tensor]:
        random = torch.Generator().manual_seed(0)
        for start in starts:
            images = torch.randn((min(ROWS, num - start), *mean.shape), generator=random)
            yield images.mul_(width).add_(centre).clamp_(-1, 1)

    def gaussian() -> Iterator[Tensor]:
        draws = torch.from_numpy(np.random.default_rng(0).normal(size=(num, len(components.spreads))))
        for start in starts:
            rows = (draws[start : start + ROWS] * components.spreads) @ components.directions
            yield (rows.view(-1, *mean.shape) + mean).float().clamp(-1, 1)

    nulls = {
        "noise": noise(grand_mean, grand_spread),
        "mean+noise": noise(mean.float(), spread.float()),
        "pca_gaussian": gaussian(),
    }
    if prior is None or prior([0]) is None:
        return nulls
    return nulls | {"prior": (prior(range(num)[start : start + ROWS]).float().cpu() for start in starts)}  # type: ignore[union-attr]
