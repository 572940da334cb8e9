"""A small U-Net of strided convolutions that predicts the class of every voxel (Ronneberger et al. 2015), in 2D and 3D.

Its way down is `ConvTrunk`, whose first layer halves the size already, so it is several times cheaper than the U-Net of
diffusion. Shapes: b batch, c channels, k classes, *s spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, cat, nn

from lit_medgen.networks.blocks import conv, group_norm
from lit_medgen.networks.gans.convolutional import ConvTrunk, width
from lit_medgen.networks.gans.sizes import Halvings


class ConvSegmenter(nn.Module):
    """Logits of classes for every voxel of an image.

    Args:
        size: voxels of an image along each axis; at least 8.
        in_channels: channels of an image.
        num_classes: of the label maps.
        channels: width of the finest level, half the image's size; doubled by each further one up to eightfold.
    """

    def __init__(self, size: Sequence[int], in_channels: int, num_classes: int, channels: int = 16) -> None:
        super().__init__()
        halvings = Halvings.of(size)
        self.trunk = ConvTrunk(halvings, in_channels, channels, "group")
        self.enlarge = nn.Upsample(scale_factor=2.0)
        before, levels = self.trunk.out_channels, []
        for level in reversed(range(halvings.num - 1)):
            after = width(channels, level)
            layer = conv(halvings.dim, before + after, after)
            levels.append(nn.Sequential(layer, group_norm(after), nn.LeakyReLU(0.2)))
            before = after
        self.up = nn.ModuleList(levels)
        self.fine = nn.Sequential(conv(halvings.dim, before + in_channels, channels), nn.LeakyReLU(0.2))
        self.out = conv(halvings.dim, channels, num_classes, kernel=1)

    def forward(self, image: Tensor) -> Tensor:
        """The logits of images; b c *s -> b k *s."""
        *finer, h = self.trunk(image)
        for level, twin in zip(self.up, reversed(finer), strict=True):
            h = level(cat([self.enlarge(h), twin], dim=1))
        halvings = self.trunk.halvings
        h = self.fine(cat([self.enlarge(h), halvings.padded(image)], dim=1))
        logits: Tensor = halvings.cropped(self.out(h))
        return logits
