"""Generators, discriminators and encoders of plain convolutions, in 2D and 3D, for images of any size.

The networks of Kwon et al. 2019, "Generation of 3D Brain MRI Using Auto-Encoding Generative Adversarial Networks", as
their public code has them at 64^3 voxels: strided convolutions of 4 voxels on the way down, nearest-neighbour doubling
and convolutions of 3 on the way up, widths of 64 to 512. What depended on 64^3 there, the coarsest grid, follows from
the size of the images here (`Halvings`). Shapes: b batch, c channels, *s spatial axes, d channels of a code.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, cast

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from lit_medgen.networks.blocks import group_norm
from lit_medgen.networks.gans.sizes import Halvings

Norm = Literal["group", "batch", "none"]
"""Batch normalisation makes the number of an image depend on others of its batch, which no gradient penalty suits."""


def width(channels: int, level: int) -> int:
    """Channels after so many halvings beyond the first: doubled by each, up to eightfold."""
    return channels * 2 ** min(level, 3)


def normalisation(norm: Norm, dim: int, channels: int) -> nn.Module:
    """A normalisation of b c *s, or of b c where dim is 0."""
    if norm == "batch":
        return {0: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dim](channels)
    return group_norm(channels) if norm == "group" else nn.Identity()


def spectrally_normalised(network: nn.Module) -> nn.Module:
    """The network, each of whose convolutions has a spectral norm of 1 (Miyato et al. 2018, algorithm 1)."""
    for layer in list(network.modules()):
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            spectral_norm(layer)
    return network


class ConvGenerator(nn.Module):
    """Images in [-1, 1] of codes.

    Args:
        size: voxels of an image along each axis.
        out_channels: channels of an image.
        latent_channels: of a code.
        channels: width at the finest level.
        norm: normalisation of every layer but the last.
    """

    def __init__(
        self,
        size: Sequence[int],
        out_channels: int = 1,
        latent_channels: int = 1000,
        channels: int = 64,
        norm: Norm = "group",
    ) -> None:
        super().__init__()
        self.halvings = Halvings.of(size)
        self.latent_channels, dim = latent_channels, self.halvings.dim
        kind = {2: nn.Conv2d, 3: nn.Conv3d}[dim]
        widths = [width(channels, level) for level in reversed(range(self.halvings.num))]
        # On a single voxel, a transposed convolution as large as the coarsest grid is this linear layer.
        self.seed = nn.Linear(latent_channels, widths[0] * math.prod(self.halvings.grid))
        layers: list[nn.Module] = [normalisation(norm, dim, widths[0]), nn.ReLU()]
        for before, after in itertools.pairwise(widths):
            layers += [nn.Upsample(scale_factor=2.0), kind(before, after, 3, padding=1, bias=False)]
            layers += [normalisation(norm, dim, after), nn.ReLU()]
        last = kind(widths[-1], out_channels, 3, padding=1, bias=False)
        self.layers = nn.Sequential(*layers, nn.Upsample(scale_factor=2.0), last, nn.Tanh())

    def forward(self, code: Tensor) -> Tensor:
        """The images of codes; b d -> b c *s."""
        seeds = self.seed(code).view(len(code), -1, *self.halvings.grid)
        return self.halvings.cropped(self.layers(seeds))


class ConvTrunk(nn.ModuleList):
    """The way down of discriminators and encoders: strided convolutions of 4 voxels, the first without normalisation.

    Args:
        halvings: of the images.
        in_channels: channels of an image.
        channels: width of the first layer.
        norm: normalisation of all layers but the first.
    """

    def __init__(self, halvings: Halvings, in_channels: int, channels: int, norm: Norm) -> None:
        kind = {2: nn.Conv2d, 3: nn.Conv3d}[halvings.dim]
        levels, before = [], in_channels
        for level in range(halvings.num):
            after = width(channels, level)
            layer = kind(before, after, 4, stride=2, padding=1)
            levels.append(
                nn.Sequential(layer, normalisation(norm if level else "none", halvings.dim, after), nn.LeakyReLU(0.2))
            )
            before = after
        super().__init__(levels)
        self.halvings, self.out_channels = halvings, before

    def forward(self, image: Tensor) -> list[Tensor]:
        """The features of every level, from the finest to the coarsest; b c *s -> b c' *s' each."""
        features, h = [], self.halvings.padded(image)
        for level in self:
            h = level(h)
            features.append(h)
        return features


class ConvDiscriminator(nn.Module):
    """One number for each image, high where it seems real: a logit, or an estimate of Wasserstein's kind.

    Args:
        size: voxels of an image along each axis.
        in_channels: channels of an image.
        channels: width at the finest level.
        norm: normalisation of all layers but first and last.
        head: what reads the coarsest grid: one filter as large as it (`whole`), or the mean over a map that another
            strided convolution gives (`patches`, as the public WGAN).
    """

    def __init__(
        self,
        size: Sequence[int],
        in_channels: int = 1,
        channels: int = 64,
        norm: Norm = "group",
        head: Literal["whole", "patches"] = "whole",
    ) -> None:
        super().__init__()
        halvings = Halvings.of(size)
        kind = {2: nn.Conv2d, 3: nn.Conv3d}[halvings.dim]
        self.trunk = ConvTrunk(halvings, in_channels, channels, norm)
        wide, whole = self.trunk.out_channels, cast(Any, halvings.grid)  # PyTorch's types want a number
        self.head = kind(wide, 1, whole) if head == "whole" else kind(wide, 1, 4, stride=2, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """The numbers of images; b c *s -> b."""
        return self.judged(self.features(image))

    def features(self, image: Tensor) -> list[Tensor]:
        """The features of every level, from the finest to the coarsest; b c *s -> b c' *s' each."""
        features: list[Tensor] = self.trunk(image)
        return features

    def judged(self, features: Sequence[Tensor]) -> Tensor:
        """The numbers of images of which these are the features; -> b."""
        numbers: Tensor = self.head(features[-1]).flatten(1).mean(1)
        return numbers


class ConvEncoder(nn.Module):
    """Codes of images, or twice as many channels, a mean and a log-variance for each.

    Args:
        size: voxels of an image along each axis.
        in_channels: channels of an image.
        out_channels: channels of the result.
        channels: width at the finest level.
        norm: normalisation of all layers but first and last.
        hidden: width of a layer between the coarsest grid and the result; 0: none.
    """

    def __init__(
        self,
        size: Sequence[int],
        in_channels: int = 1,
        out_channels: int = 1000,
        channels: int = 64,
        norm: Norm = "group",
        hidden: int = 0,
    ) -> None:
        super().__init__()
        halvings = Halvings.of(size)
        self.trunk = ConvTrunk(halvings, in_channels, channels, norm)
        num = self.trunk.out_channels * math.prod(halvings.grid)
        layers: list[nn.Module] = []
        if hidden:
            layers += [nn.Linear(num, hidden), normalisation(norm, 0, hidden), nn.ReLU()]
        self.head = nn.Sequential(nn.Flatten(), *layers, nn.Linear(hidden or num, out_channels))

    def forward(self, image: Tensor) -> Tensor:
        """The codes of images; b c *s -> b d."""
        code: Tensor = self.head(self.trunk(image)[-1])
        return code


class CodeDiscriminator(nn.Sequential):
    """One number for each code, high where it seems drawn from the prior; b d -> b.

    Args:
        latent_channels: of a code.
        hidden: width of its two hidden layers; 4096 in the public notebook.
        norm: normalisation of the hidden layers.
    """

    def __init__(self, latent_channels: int = 1000, hidden: int = 4096, norm: Norm = "none") -> None:
        layers: list[nn.Module] = []
        for before in (latent_channels, hidden):
            layers += [nn.Linear(before, hidden), normalisation(norm, 0, hidden), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Linear(hidden, 1), nn.Flatten(0))
