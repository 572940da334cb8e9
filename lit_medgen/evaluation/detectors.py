r"""Detectors of images that are not like those of training: raw surprises, their z-scores, and how well these tell.

    z           (s - mean of s over validation images) / its standard deviation there  (Graham et al. 2023, section 3.3)
    surprise    mean of z over the raw surprises s of a detector (reconstruction errors at several noise levels)
    typicality  mean of |z|: images that a likelihood finds too good are untypical as well (Nalisnick et al. 2019)

Graham et al. "Denoising diffusion models for out-of-distribution detection". CVPRW 2023. Nalisnick et al. "Detecting
out-of-distribution inputs to deep generative models using typicality". 2019.

A likelihood is high for simple images, whatever they show. Where a model's surprise is in bits per dimension, what a
lossless compressor needs is taken from it (Serrà et al. "Input complexity and out-of-distribution detection with
likelihood-based generative models". ICLR 2020, eq. 1): `bits_beyond_png`.

Two controls look at no model: the distance of an image's histogram from that of validation images, and the bits that a
lossless compressor needs. Where one of them tells a set as well, the set says nothing of the model.

Shapes: n images, c channels, *s their axes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lit_medgen.metrics.base import Estimate
from lit_medgen.metrics.skill import AreaUnderROC

BITS = "bits_per_dimension"
"""The measure of a model that can be compared with bits per voxel."""
BEYOND_PNG = "bits_beyond_png"
LEVELS = 256
"""Grey values of the histogram and of the images that are compressed."""
RECALL = 0.95
"""Share of the images of a set that must be found where false positives are counted."""


def grey_values(images: Tensor) -> Tensor:
    """Grey values 0 to 255 of images in [-1, 1], uint8, of the same shape."""
    return ((images + 1) / 2 * (LEVELS - 1)).round().clamp(0, LEVELS - 1).to(torch.uint8)


def cumulated(images: Tensor) -> Tensor:
    """The share of the voxels of each image that are at most so bright, n c *s -> n 256, float64."""
    values = grey_values(images).flatten(1).long()
    counts = torch.zeros(len(images), LEVELS, dtype=torch.float64, device=images.device)
    counts.scatter_add_(1, values, torch.ones_like(values, dtype=torch.float64))
    return counts.cumsum(1) / values.shape[1]


def histogram_distance(shares: Tensor, reference: Tensor) -> Tensor:
    """Wasserstein-1 distance of histograms, n, in units of the range [0, 1] of grey values.

    Args:
        shares: n 256, as `cumulated` gives them.
        reference: 256 or n 256, what each is compared with.
    """
    return (shares - reference).abs().sum(-1) / (LEVELS - 1)


def without_itself(shares: Tensor) -> Tensor:
    """For each of n >= 2 images the mean of `cumulated` over the others, n 256."""
    return (shares.sum(0) - shares) / (len(shares) - 1)


def png_bits(images: Tensor) -> Tensor:
    """Bits per voxel of each image as a PNG of 8 bits, n float64; its channels and slices stand below each other."""
    found = []
    for image in grey_values(images).cpu():  # c *s
        image = image.movedim(3, 1) if image.ndim == 4 else image
        content = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image.reshape(-1, image.shape[-1]).numpy())).save(content, format="png")
        found.append(8 * len(content.getvalue()) / image.numel())
    return torch.tensor(found, dtype=torch.float64)


class Scale(NamedTuple):
    """Mean and standard deviation of a raw surprise over validation images."""

    mean: float
    std: float

    @classmethod
    def of(cls, values: Tensor) -> Scale:
        """The scale of n values; a standard deviation of 0, where all are alike, counts as 1."""
        return cls(float(values.mean()), float(values.std(correction=0)) or 1.0)

    def z(self, values: Tensor) -> Tensor:
        """The values in standard deviations from the mean, n."""
        return (values - self.mean) / self.std


def surprise(raw: Mapping[str, Tensor], scales: Mapping[str, Scale]) -> Tensor:
    """The mean z-score of each image over the raw surprises of a detector, n."""
    return torch.stack([scales[name].z(values) for name, values in raw.items()]).mean(0)


def untypical(raw: Mapping[str, Tensor], scales: Mapping[str, Scale]) -> Tensor:
    """The mean absolute z-score of each image over the raw surprises of a detector, n."""
    return torch.stack([scales[name].z(values).abs() for name, values in raw.items()]).mean(0)


class Separation(NamedTuple):
    """How well a detector tells a set from the test images."""

    auc: Estimate
    false_positives: float
    """Share of the test images that are taken for the set where `RECALL` of the set is found."""


def separation(inside: Tensor, outside: Tensor, people: Sequence[str], others: Sequence[str]) -> Separation:
    """How well a score, higher outside, tells two sets of images apart.

    The area is never turned around: below 0.5 the detector finds the set more like training than test images.

    Args:
        inside: n, of the test images.
        outside: m, of the set.
        people: n, whose the test images are.
        others: m, whose those of the set are; a person may be in both, and is left out of both by the jackknife.
    """
    metric = AreaUnderROC()
    labels = torch.cat([torch.zeros(len(inside)), torch.ones(len(outside))])
    metric.update(labels, torch.cat([inside, outside]), [*people, *others])
    return Separation(metric.estimate(), false_positives(inside, outside))


def false_positives(inside: Tensor, outside: Tensor, recall: float = RECALL) -> float:
    """Share of `inside` that is at least as high as the highest threshold which finds so much of `outside`."""
    threshold = outside.sort(descending=True).values[math.ceil(recall * len(outside)) - 1]
    return float((inside >= threshold).double().mean())
