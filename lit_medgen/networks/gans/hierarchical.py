"""HA-GAN's networks: whole images at sampling, sub-volumes in training, in 2D and 3D, for images of any size.

Sun et al. 2022, "Hierarchical Amortized GAN for 3D High Resolution Medical Image Synthesis", as their public code has
them at 128^3 voxels. A code becomes a latent grid at a quarter of the image's size. A head makes the image of it, or
in training that of an eighth of its planes; another makes a small image of all of it. Each has a discriminator. An
encoder brings sub-volumes to latent planes, a second one the latent grid to a code.

A sub-volume is exactly what the head makes of the whole grid there. For this, it is made of a latent plane more on
either side, which its convolutions see, and cut; and no layer takes statistics over voxels, which are others in a part:
features are divided by their root mean square over the channels of each voxel (pixel norm: Karras et al. 2018,
"Progressive Growing of GANs", section 4.2). The public code pads the cut with zeros and normalises groups of channels
over the part (`norm: group`). The encoder has two planes more on either side.

Sub-volumes are cut along the first axis: slabs of a volume, bands of rows of a 2D image. Planes are counted in the
padded frame of `Halvings`. Shapes: b batch, c channels, *s spatial axes, d channels of a code, e latent channels, *z
the latent grid, n planes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from lit_medgen.networks.gans.convolutional import ConvTrunk, spectrally_normalised
from lit_medgen.networks.gans.sizes import Halvings

SubVolumeNorm = Literal["voxel", "group"]
"""Group normalisation takes statistics of a part that are not those of the whole."""
NUM_PARTS = 8
"""Sub-volumes of 128^3 voxels, 16 planes each."""
GENERATOR_HALO, ENCODER_HALO = 1, 2
"""Latent planes beyond a cut that the outermost voxel, or latent plane, of a sub-volume hangs on."""


class VoxelNorm(nn.Module):
    """Divides features by their root mean square over the channels of each voxel; b c *s -> b c *s.

    Args:
        channels: of the features, each of which has a gain.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, h: Tensor) -> Tensor:
        """The normalised features, in float32 at least until they are divided."""
        exact = h.to(torch.promote_types(h.dtype, torch.float32))
        size = exact.square().mean(1, keepdim=True).add(1e-8).sqrt()
        return (exact / size).to(h.dtype) * self.gain.view(-1, *[1] * (h.ndim - 2))


def _norm(norm: SubVolumeNorm, channels: int) -> nn.Module:
    """A normalisation of each voxel, or the code's of eight groups."""
    return VoxelNorm(channels) if norm == "voxel" else nn.GroupNorm(math.gcd(8, channels), channels)


def _kind(dim: int) -> Any:
    return {2: nn.Conv2d, 3: nn.Conv3d}[dim]


@dataclass(frozen=True)
class SubVolumes:
    """How images are cut along their first axis, in planes of the latent grid.

    Attributes:
        num_planes: of the whole.
        length: planes of a sub-volume, an eighth of the whole or a little more.
        factor: planes of the image for each latent plane.
    """

    num_planes: int
    length: int
    factor: int

    @classmethod
    def of(cls, halvings: Halvings) -> SubVolumes:
        """Those of images that are halved so; the latent grid is at a quarter of their size, at half of small ones."""
        factor = 2 ** min(2, halvings.num)
        num_planes = halvings.grid[0] * 2**halvings.num // factor
        return cls(num_planes, -(-num_planes // NUM_PARTS), factor)

    @property
    def starts(self) -> int:
        """How many first planes a sub-volume can have: 0 to this number - 1."""
        return self.num_planes - self.length + 1

    @property
    def tiles(self) -> list[tuple[int, int]]:
        """First plane and number of planes of sub-volumes that lie beside each other and are the whole."""
        firsts = range(0, self.num_planes, self.length)
        return [(first, min(self.length, self.num_planes - first)) for first in firsts]

    def widened(self, first: int, length: int, halo: int) -> tuple[int, int]:
        """First plane and number of planes with a halo on either side, shifted inwards at the ends of the whole."""
        wide = min(self.num_planes, length + 2 * halo)
        return min(max(0, first - halo), self.num_planes - wide), wide


class HierarchicalGenerator(nn.Module):
    """Images of codes in [-1, 1], their sub-volumes, and small ones.

    Args:
        size: voxels of an image along each axis.
        out_channels: channels of an image.
        latent_channels: d, of a code.
        channels: width at half the size, doubled by each coarser level up to sixteenfold; the latent grid has twice as
            many.
        norm: of the layers that see sub-volumes.
    """

    def __init__(
        self,
        size: Sequence[int],
        out_channels: int = 1,
        latent_channels: int = 1024,
        channels: int = 32,
        norm: SubVolumeNorm = "voxel",
    ) -> None:
        super().__init__()
        self.halvings = Halvings.of(size)
        self.parts = SubVolumes.of(self.halvings)
        doublings = self.parts.factor.bit_length() - 1
        kind = _kind(self.halvings.dim)
        widths = [channels * 2 ** min(level, 4) for level in range(self.halvings.num, doublings - 1, -1)]
        self.seed = nn.Linear(latent_channels, widths[0] * math.prod(self.halvings.grid))
        trunk = _block(kind, widths[0], widths[0], "group")
        for before, after in itertools.pairwise(widths):
            trunk += [nn.Upsample(scale_factor=2.0), *_block(kind, before, after, "group")]
        self.trunk = nn.Sequential(*trunk, *_block(kind, widths[-1], 2 * channels, "group"))
        half = max(1, channels // 2)
        small = [*_block(kind, 2 * channels, channels, "group"), *_block(kind, channels, half, "group")]
        self.small = nn.Sequential(*small, kind(half, out_channels, 3, padding=1), nn.Tanh())
        head: list[nn.Module] = []
        if doublings == 2:
            head = [nn.Upsample(scale_factor=2.0), *_block(kind, 2 * channels, channels, norm)]
        last = kind(channels if head else 2 * channels, out_channels, 3, padding=1)
        self.head = nn.Sequential(*head, nn.Upsample(scale_factor=2.0), last, nn.Tanh())

    def forward(self, code: Tensor) -> Tensor:
        """The whole images of codes; b d -> b c *s."""
        return self.halvings.cropped(self.head(self.latents(code)))

    def latents(self, code: Tensor) -> Tensor:
        """The latent grids of codes; b d -> b e *z."""
        grids: Tensor = self.trunk(self.seed(code).view(len(code), -1, *self.halvings.grid))
        return grids

    def sub_volume(self, latents: Tensor, first: int, overlap: bool = True) -> Tensor:
        """The sub-volume that begins at a latent plane; b e *z -> b c n *s.

        Args:
            latents: the whole grid.
            first: the latent plane.
            overlap: whether convolutions see what lies beyond the cut; else zeros, as in the public code.
        """
        start, wide = self.parts.widened(first, self.parts.length, GENERATOR_HALO if overlap else 0)
        return self.image_of_planes(latents.narrow(2, start, wide), start, first)

    def image_of_planes(self, latents: Tensor, start: int, first: int) -> Tensor:
        """The sub-volume that begins at plane `first`, of latent planes from `start` on; b e n *z -> b c n' *s."""
        factor = self.parts.factor
        image: Tensor = self.head(latents)
        return image.narrow(2, (first - start) * factor, self.parts.length * factor)


def _block(kind: Any, before: int, after: int, norm: SubVolumeNorm) -> list[nn.Module]:
    return [kind(before, after, 3, padding=1), _norm(norm, after), nn.ReLU()]


class SubVolumeEncoder(nn.Sequential):
    """The latent planes of an image's planes; b c n *s -> b e n/4 *z.

    Args:
        dim: 2 or 3.
        halvings: of its sides, 2, or 1 for small images.
        in_channels: channels of an image.
        channels: width of the first layer; the latent grid has twice as many.
        norm: of its layers.
    """

    def __init__(self, dim: int, halvings: int, in_channels: int, channels: int, norm: SubVolumeNorm) -> None:
        kind, layers = _kind(dim), list[nn.Module]()
        if halvings == 2:
            layers = [kind(in_channels, channels, 4, stride=2, padding=1), _norm(norm, channels), nn.ReLU()]
            layers += _block(kind, channels, channels, norm)
        last = kind(channels if layers else in_channels, 2 * channels, 4, stride=2, padding=1)
        super().__init__(*layers, last, _norm(norm, 2 * channels), nn.ReLU())


class SubVolumeDiscriminator(nn.Module):
    """A logit for each sub-volume and where it was cut, high where it seems real.

    Args:
        size: voxels of a sub-volume along each axis.
        num: how often its other sides are halved; the first one is as long as it is longer than one voxel.
        in_channels: channels of an image.
        channels: width of the first layer, doubled by each further one up to sixteenfold.
    """

    def __init__(self, size: Sequence[int], num: int, in_channels: int, channels: int) -> None:
        super().__init__()
        kind, sides, before, layers = _kind(len(size)), list(size), in_channels, list[nn.Module]()
        for level in range(num):
            after = channels * 2 ** min(level, 4)
            steps = [_halving(side) for side in sides]
            kernel, stride, padding = zip(*steps, strict=True)
            layers += [spectral_norm(kind(before, after, kernel, stride, padding)), nn.LeakyReLU(0.2)]
            sides = [(n + 2 * p - k) // s + 1 for n, (k, s, p) in zip(sides, steps, strict=True)]
            before = after
        layers += [spectral_norm(kind(before, 4 * channels, sides)), nn.LeakyReLU(0.2), nn.Flatten()]
        self.layers = nn.Sequential(*layers)
        wide = 4 * channels + 1
        hidden = spectral_norm(nn.Linear(wide, 2 * channels)), nn.LeakyReLU(0.2)
        self.head = nn.Sequential(*hidden, spectral_norm(nn.Linear(2 * channels, 1)), nn.Flatten(0))

    def forward(self, image: Tensor, position: float) -> Tensor:
        """The logits of sub-volumes that were all cut at one position in [0, 1]; b c n *s -> b."""
        h = self.layers(image)
        logits: Tensor = self.head(torch.cat([h, h.new_full((len(h), 1), position)], 1))
        return logits


def _halving(side: int) -> tuple[int, int, int]:
    """Kernel, stride and padding that halve a side: of 4 voxels, of 2 where it is short, of 3 where it is odd."""
    if side == 1:
        return 1, 1, 0
    if side % 2:
        return 3, 2, 1
    return (4, 2, 1) if side > 4 else (2, 2, 0)


class HierarchicalDiscriminator(nn.Module):
    """The mean logit of a sub-volume and of the small image (HA-GAN's code).

    Args:
        size: voxels of an image along each axis.
        in_channels: channels of an image.
        channels: width of the first layer for sub-volumes, half that for small images.
    """

    def __init__(self, size: Sequence[int], in_channels: int = 1, channels: int = 32) -> None:
        super().__init__()
        halvings = Halvings.of(size)
        parts, kind = SubVolumes.of(halvings), _kind(halvings.dim)
        across = [side * 2**halvings.num for side in halvings.grid[1:]]
        self.high = SubVolumeDiscriminator((parts.length * parts.factor, *across), halvings.num, in_channels, channels)
        trunk = ConvTrunk(_coarse(halvings, parts.factor), in_channels, 2 * channels, "none")
        last = kind(trunk.out_channels, 1, halvings.grid)
        self.low = spectrally_normalised(nn.Sequential(*trunk, last, nn.Flatten(0)))

    def forward(self, image: Tensor, small: Tensor, position: float) -> Tensor:
        """The logits of sub-volumes b c n *s, cut at a position in [0, 1], and of small images b c *z; -> b."""
        logits: Tensor = (self.high(image, position) + self.low(small)) / 2
        return logits


def _coarse(halvings: Halvings, factor: int) -> Halvings:
    """Those that are left of the latent grid."""
    num = halvings.num - (factor.bit_length() - 1)
    return Halvings(tuple(side * 2**num for side in halvings.grid), num, halvings.grid)


class HierarchicalGAN(nn.Module):
    """HA-GAN's parts for images of one size.

    Args:
        size: voxels of an image along each axis, 2 or 3 of them.
        in_channels: channels of an image.
        latent_channels: channels of a code.
        channels: width at half the size, doubled by each coarser one up to sixteenfold.
        norm: of the layers that see sub-volumes: `voxel`, or `group` as in the public code.
    """

    def __init__(
        self,
        size: Sequence[int],
        in_channels: int = 1,
        latent_channels: int = 1024,
        channels: int = 32,
        norm: SubVolumeNorm = "voxel",
    ) -> None:
        super().__init__()
        if norm not in ("voxel", "group"):
            raise ValueError(f"network.init_args.norm is {norm!r}; give voxel or group.")
        self.size, self.in_channels, self.latent_channels = tuple(size), in_channels, latent_channels
        self.halvings = Halvings.of(size)
        self.parts = SubVolumes.of(self.halvings)
        self.generator = HierarchicalGenerator(size, in_channels, latent_channels, channels, norm)
        self.discriminator = HierarchicalDiscriminator(size, in_channels, channels)
        doublings = self.parts.factor.bit_length() - 1
        self.encoder = SubVolumeEncoder(self.halvings.dim, doublings, in_channels, channels, norm)
        trunk = ConvTrunk(_coarse(self.halvings, self.parts.factor), 2 * channels, 2 * channels, "group")
        code = nn.Linear(trunk.out_channels * math.prod(self.halvings.grid), latent_channels)
        self.sub_encoder = nn.Sequential(*trunk, nn.Flatten(), code)

    def encoded(self, image: Tensor, first: int, length: int, overlap: bool = True) -> Tensor:
        """So many latent planes of padded images, from one plane on; b c *s -> b e n *z.

        Args:
            image: whole images, of which only the planes that are needed are read.
            first: the first latent plane.
            length: how many.
            overlap: whether convolutions see what lies beyond them; else zeros, as in the public code.
        """
        factor = self.parts.factor
        start, wide = self.parts.widened(first, length, ENCODER_HALO if overlap else 0)
        latents: Tensor = self.encoder(image.narrow(2, start * factor, wide * factor))
        return latents.narrow(2, first - start, length)

    def reconstructed(self, image: Tensor, first: int) -> Tensor:
        """The sub-volume that begins at a latent plane, of the latents of padded images; b c *s -> b c n *s."""
        start, wide = self.parts.widened(first, self.parts.length, GENERATOR_HALO)
        return self.generator.image_of_planes(self.encoded(image, start, wide), start, first)

    def in_tiles(self, encode: Callable[[int, int], Tensor]) -> Tensor:
        """The whole latent grid, from what gives those of the planes from a first one on; -> b e *z."""
        return torch.cat([encode(*tile) for tile in self.parts.tiles], 2)
