"""The symmetries of crops that training shows a classifier: a nodule looks as malignant mirrored or turned."""

from __future__ import annotations

import torch
from torch import Tensor


def mirrored(images: Tensor) -> Tensor:
    """Images b c *s, each mirrored along any axis or not, and, where the last two are as long, transposed or not."""
    for axis in range(2, images.ndim):
        images = torch.where(_coin(images), images.flip(axis), images)
    if images.shape[-1] == images.shape[-2]:
        images = torch.where(_coin(images), images.transpose(-1, -2), images)
    return images


def _coin(images: Tensor) -> Tensor:
    """True or false for each image, b and ones."""
    return torch.rand(len(images), *[1] * (images.ndim - 1), device=images.device) < 0.5
