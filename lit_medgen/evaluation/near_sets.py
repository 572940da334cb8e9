"""Near out-of-distribution sets: images of the test people, changed by named transforms.

The published far sets, other organs, are told apart by a histogram (docs/out_of_distribution.md). What a scanner or a
script does wrong is nearer: noise, a field of view that ends early, an axis that runs the other way, slices that are
missing, another contrast, a filter. Each transform is a pure function of an image and a seed.

Shapes: n images, c channels, *s their axes; values in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from lit_medgen.batch import Images
from lit_medgen.diffusion.heat import dissipate
from lit_medgen.seeds import SeededNoise, mix

BACKGROUND = -1.0
"""What stands where a transform takes an image away: the lowest value of the range."""
NOISE = 0.1
"""Standard deviation of the noise; the range of images is 2 wide."""
SHARE = 8
"""One part in so many of an axis is cut off at either end, or is missing."""
GAMMA = 0.7
"""Exponent of grey values in [0, 1]."""
BLUR_PX = 1.0
"""Width of the Gaussian of the blur, in voxels."""

Transform = Callable[[Tensor, Sequence[int]], Tensor]
"""Images n c *s and a seed for each -> n c *s."""


def noise(images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Images with Gaussian noise of standard deviation `NOISE`, clipped to the range."""
    return (images + NOISE * SeededNoise([mix("noise", seed) for seed in seeds]).like(images)).clamp(-1, 1)


def crop(images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Images whose outer eighth at either end of each axis is background."""
    cut = torch.zeros_like(images, dtype=torch.bool)
    for axis, side in enumerate(images.shape[2:], start=2):
        end = side // SHARE
        cut.narrow(axis, 0, end).fill_(True)
        cut.narrow(axis, side - end, end).fill_(True)
    return images.masked_fill(cut, BACKGROUND)


def flip(axis: int, images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Images with a spatial axis reversed."""
    return images.flip(2 + axis)


def missing_slices(images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Images with an eighth of the slices along the last axis (in 2D: rows) made background, in the middle half."""
    length = images.shape[-1]
    width = max(1, length // SHARE)
    share = SeededNoise([mix("missing_slices", seed) for seed in seeds]).uniform((1,), like=images)
    start = (length / 4 + share * (length / 2 - width)).floor()
    position = torch.arange(length, device=images.device)
    gone = (position >= start) & (position < start + width)  # n length
    return images.where(~gone.view(len(images), *[1] * (images.ndim - 2), length), BACKGROUND)


def inverted(images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Images with dark for bright."""
    return -images


def gamma(images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Images whose grey values, in [0, 1], are raised to the power `GAMMA`."""
    return ((images + 1) / 2).clamp(0, 1) ** GAMMA * 2 - 1


def blur(images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Images after a Gaussian filter of width `BLUR_PX`, mirrored at the borders."""
    time = torch.full((len(images),), BLUR_PX**2 / 2, device=images.device)
    return dissipate(images, time).clamp(-1, 1)


def near_transforms(num_axes: int) -> Mapping[str, Transform]:
    """Name -> transform, of images with so many spatial axes."""
    flips = {f"flip_{name}": partial(flip, axis) for axis, name in enumerate("xyz"[:num_axes])}
    return {
        "noise": noise,
        "crop": crop,
        **flips,
        "missing_slices": missing_slices,
        "inverted": inverted,
        "gamma": gamma,
        "blur": blur,
    }


def described(name: str) -> str:
    """What the transform of a name does, for a report."""
    words = {
        "noise": f"Gaussian noise of standard deviation {NOISE:g} of a range of 2, clipped",
        "crop": f"the outer {1 / SHARE:g} at either end of each axis made background",
        "missing_slices": f"{1 / SHARE:g} of the slices (in 2D rows) in the middle half made background",
        "inverted": "dark for bright",
        "gamma": f"grey values in [0, 1] to the power {GAMMA:g}",
        "blur": f"a Gaussian filter of width {BLUR_PX:g} voxels",
    }
    return words[name] if name in words else f"the axis {name[-1]} reversed"


def transformed(images: Images, name: str, transform: Transform) -> Images:
    """The images after a transform, read when they are needed; image i has seed i, so people stay paired."""

    def read(indices: Sequence[int]) -> Tensor:
        return transform(images.read(indices), list(indices))

    return Images([f"{key}-{name}" for key in images.keys], images.people, read)
