r"""Two representations in which an audit looks for copies: voxels, and an embedding learned from the training images.

voxels     images on a coarse grid, band-passed and windowed: b = w (G_1 x - G_3 x). The likeness of two images is the
           Pearson correlation of b, so brightness and contrast do not count, nor does the mean head, which is smooth.
embedding  W (b - m), learned from the training images: W spans the leading principal components of the training images
           and of altered copies of them, and whitens there how b changes from an image to its altered copies (Fisher's
           linear discriminant; Hotelling 1933, Fisher 1936). What an image shares with its altered copies counts much,
           what turning, moving, noise, gamma and blur change counts little. It is what contrastive learning aims at, in
           closed form: it takes seconds, and repeats bit for bit.

The likeness of a sample to a training image is the highest over the sample's flips and small rotations (`turned`).

Shapes: n images, c channels, *s their axes; d features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lit_medgen.diffusion.heat import dissipate

MAX_VOXELS = 2**12
"""Of the coarse grid: 64 x 64, 16 x 16 x 16."""
BAND_PX = (1.0, 3.0)
"""Widths of the Gaussians between which details are looked at, in voxels of the coarse grid."""
WINDOW = 0.25
"""Share of each axis over which the window falls to 0 at either end: turning brings in what lay outside."""
ANGLES = (-5.0, 0.0, 5.0)
"""Degrees by which samples are turned, in the plane of the first two axes."""
NUM_COMPONENTS, NUM_COPIES, RIDGE = 128, 6, 0.1
"""Of the embedding: dimensions at most, altered copies of each image that it learns from, and what is added to the
variance of each component, as a share of their mean."""
MAX_LEARNED = 512
"""Training images that the embedding is learned from."""
SHIFT, TURN, NOISE, GAMMA = 0.05, 4.0, 0.2, 0.4
"""How much altered copies differ at most: share of each axis, degrees, standard deviation (of a range of 2), log of the
exponent of grey values."""


def coarse(images: Tensor) -> Tensor:
    """Means over areas on a grid of at most `MAX_VOXELS`, n c *t; images that are as small already stay as they are."""
    size = images.shape[2:]
    scale = min(1.0, (MAX_VOXELS / math.prod(size)) ** (1 / len(size)))
    return images if scale == 1 else functional.interpolate(images, size=[int(s * scale) for s in size], mode="area")


def voxels(images: Tensor) -> Tensor:
    """The band-passed, windowed images as rows of norm 1 and mean 0, n d; their products are Pearson correlations."""
    fine, smooth = (dissipate(images, torch.full((len(images),), width**2 / 2)) for width in BAND_PX)
    return _standardised(((fine - smooth) * _window(images.shape[2:])).flatten(1))


def _window(size: Sequence[int]) -> Tensor:
    """*s: 1 in the middle, falling to 0 at the borders as a cosine does."""
    window = torch.ones(())
    for side in size:
        inwards = (torch.arange(side) + 0.5) / side
        edge = (torch.minimum(inwards, 1 - inwards) / WINDOW).clamp(max=1)
        window = window[..., None] * (1 - torch.cos(math.pi * edge)) / 2
    return window


def _standardised(features: Tensor) -> Tensor:
    features = features - features.mean(1, keepdim=True)
    return features / features.norm(dim=1, keepdim=True).clamp(min=1e-12)


class Embedding(NamedTuple):
    """The learned embedding: W (b - mean), of norm 1."""

    mean: Tensor
    """d, of `voxels` of the training images."""
    matrix: Tensor
    """k d."""

    def __call__(self, features: Tensor) -> Tensor:
        """n d, as `voxels` gives them -> n k."""
        return _standardised((features - self.mean) @ self.matrix.T)


def learn(images: Tensor) -> Embedding:
    """The embedding of coarse training images, n c *t, n >= 2; the same for the same images."""
    random = torch.Generator().manual_seed(0)
    base = voxels(images)
    copies = [voxels(altered(images, k, random)) for k in range(NUM_COPIES)]
    mean = base.mean(0)
    components = _components(torch.cat([base, copies[0]]) - mean)
    changes = (torch.cat([copy - base for copy in copies]) @ components.T).double()
    within = changes.T @ changes / len(changes)
    within += RIDGE * within.diagonal().mean() * torch.eye(len(within), dtype=torch.float64)
    values, vectors = torch.linalg.eigh(within)
    whitening = (vectors * values.clamp(min=1e-12).rsqrt()) @ vectors.T
    return Embedding(mean, whitening.float() @ components)


def _components(rows: Tensor) -> Tensor:
    """k d: the leading principal directions of n rows, from their scalar products (as `nulls.principal_components`)."""
    values, vectors = torch.linalg.eigh((rows @ rows.T).double())
    num = min(NUM_COMPONENTS, int((values > 1e-6 * values[-1]).sum()))
    values, vectors = values[-num:], vectors[:, -num:]
    return (vectors / values.sqrt()).T.float() @ rows


def altered(images: Tensor, number: int, random: torch.Generator) -> Tensor:
    """A copy of each image, n c *t, at random turned, moved, with another gamma and noise, every third copy blurred."""
    n, dim = len(images), images.ndim - 2

    def between(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=random) * (high - low) + low

    shift = torch.stack([between(-SHIFT, SHIFT) for _ in range(dim)], dim=1)
    planes = list(combinations(range(dim), 2))
    copies = moved(images, between(-TURN, TURN), planes[number % len(planes)], shift)
    copies = with_gamma(copies, between(-GAMMA, GAMMA).exp())
    if number % 3 == 0:
        copies = dissipate(copies, torch.full((n,), 0.5))
    spread = between(0, NOISE).view(n, *[1] * (images.ndim - 1))
    return (copies + spread * torch.randn(copies.shape, generator=random)).clamp(-1, 1)


def turned(images: Tensor) -> Iterator[Tensor]:
    """The images as they are, with each axis reversed, and each of these turned by `ANGLES`, n c *s each."""
    for axis in (None, *range(2, images.ndim)):
        flipped = images if axis is None else images.flip(axis)
        for angle in ANGLES:
            yield moved(flipped, torch.full((len(images),), angle)) if angle else flipped


def moved(images: Tensor, degrees: Tensor, plane: tuple[int, int] = (0, 1), shift: Tensor | None = None) -> Tensor:
    """The images turned about their middle and shifted, linearly interpolated; -1 comes in from outside.

    Args:
        images: n c *s in [-1, 1].
        degrees: n.
        plane: the two axes that are turned into each other.
        shift: n and an axis each, as a share of that axis; None: none.
    """
    n, size = len(images), images.shape[2:]
    dim = len(size)
    radians = degrees * math.pi / 180
    matrix = torch.eye(dim, dim + 1).repeat(n, 1, 1)
    # PyTorch's grids count axes from the last, each from -1 to 1 whatever its length.
    a, b = (dim - 1 - axis for axis in plane)
    ratio = size[plane[1]] / size[plane[0]]
    matrix[:, a, a] = matrix[:, b, b] = radians.cos()
    matrix[:, a, b], matrix[:, b, a] = -radians.sin() * ratio, radians.sin() / ratio
    if shift is not None:
        matrix[:, :, -1] = 2 * shift.flip(1)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images + 1, grid, padding_mode="zeros", align_corners=False) - 1


def with_gamma(images: Tensor, exponent: Tensor) -> Tensor:
    """The images with grey values in [0, 1] raised to a power, n each."""
    power = exponent.view(-1, *[1] * (images.ndim - 1))
    return ((images + 1) / 2).clamp(0, 1) ** power * 2 - 1
