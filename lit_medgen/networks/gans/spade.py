"""SPADE's networks: images of label maps, in 2D and 3D, for images of any size.

Park et al. 2019, "Semantic Image Synthesis with Spatially-Adaptive Normalization", as their public code has them: a
generator whose every normalisation a label map modulates (`lit_medgen.networks.semantic_unet`), from a coarse grid up;
an encoder of images to a Gaussian code, which may be left out; patch discriminators of the image at several scales,
which see the map beside it. Convolutions are spectrally normalised.

The generator's normalisations are of groups of channels, not of batches: an image must not depend on others. A map
comes to the size of a level as in `SemanticUNet`. The coarsest grid follows from the size of the images (`Halvings`);
the code's, of 256 pixels halved five times, is 8 x 8 voxels. Shapes: b batch, c channels, k classes, *s spatial axes,
d channels of a code.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from lit_medgen.networks.blocks import conv, group_norm
from lit_medgen.networks.discriminator import PatchDiscriminator
from lit_medgen.networks.gans.convolutional import ConvEncoder, spectrally_normalised
from lit_medgen.networks.gans.sizes import Halvings
from lit_medgen.networks.semantic_unet import Modulation, one_hot, pooled

SLOPE = 0.2


class SPADEBlock(nn.Module):
    """A residual block whose normalisations a label map modulates, that of its shortcut too (their figure 4).

    Args:
        dim: 2 or 3.
        in_channels: channels of its input.
        out_channels: channels of its output.
        num_classes: channels of the one-hot map.
        modulation_channels: hidden channels of the modulation.
    """

    def __init__(
        self, dim: int, in_channels: int, out_channels: int, num_classes: int, modulation_channels: int
    ) -> None:
        super().__init__()
        middle = min(in_channels, out_channels)
        widths = [in_channels, middle] + [in_channels] * (in_channels != out_channels)
        self.modulation = Modulation(dim, num_classes, modulation_channels, widths)
        self.norms = nn.ModuleList([group_norm(width, affine=False) for width in widths])
        self.conv1 = spectral_norm(conv(dim, in_channels, middle))
        self.conv2 = spectral_norm(conv(dim, middle, out_channels))
        self.skip = spectral_norm(conv(dim, in_channels, out_channels, kernel=1)) if len(widths) == 3 else None

    def forward(self, h: Tensor, hot: Tensor) -> Tensor:
        """The block's output for features b c *s and one-hot maps b k *s; -> b c' *s."""
        modulations = self.modulation(hot)

        def spade(h: Tensor, i: int) -> Tensor:
            gamma, beta = modulations[i]
            normalised: Tensor = self.norms[i](h)
            return normalised * (1 + gamma) + beta

        inner = self.conv1(functional.leaky_relu(spade(h, 0), SLOPE))
        inner = self.conv2(functional.leaky_relu(spade(inner, 1), SLOPE))
        skip: Tensor = h if self.skip is None else self.skip(spade(h, 2))
        return skip + inner


class SPADEGenerator(nn.Module):
    """Images in [-1, 1] of label maps, and of codes where there are any.

    Args:
        size: voxels of an image along each axis.
        num_classes: classes of the label map.
        out_channels: channels of an image.
        latent_channels: d, of a code; 0: the coarsest features are a convolution of the map there instead.
        channels: width at the full size, doubled by each coarser level up to sixteenfold.
        modulation_channels: hidden channels of each block's modulation.
        pyramid: how maps come to the size of a level.
    """

    def __init__(
        self,
        size: Sequence[int],
        num_classes: int,
        out_channels: int = 1,
        latent_channels: int = 256,
        channels: int = 64,
        modulation_channels: int = 128,
        pyramid: Literal["max", "nearest"] = "max",
    ) -> None:
        super().__init__()
        self.halvings, self.num_classes, self.pyramid = Halvings.of(size), num_classes, pyramid
        dim, num = self.halvings.dim, self.halvings.num
        widths = [channels * 2 ** min(level, 4) for level in range(num + 1)]
        self.start: nn.Module
        if latent_channels:
            self.start = nn.Linear(latent_channels, widths[num] * math.prod(self.halvings.grid))
        else:
            self.start = conv(dim, num_classes, widths[num])
        # One block for each level, from the coarsest on, and another one for the second.
        self.levels = [num, num - 1, *range(num - 1, -1, -1)]
        pairs = itertools.pairwise(widths[level] for level in (num, *self.levels))
        self.blocks = nn.ModuleList([SPADEBlock(dim, *pair, num_classes, modulation_channels) for pair in pairs])
        self.last = conv(dim, channels, out_channels)

    def forward(self, label_map: Tensor, code: Tensor | None = None) -> Tensor:
        """The images of label maps b 1 *s, integer classes, and codes b d; -> b c *s."""
        hots = self.maps(label_map)
        num = self.halvings.num
        first = self.start(hots[num]) if code is None else self.start(code)
        h = first.view(len(label_map), -1, *self.halvings.grid)
        at = num
        for level, block in zip(self.levels, self.blocks, strict=True):
            if level < at:
                h, at = functional.interpolate(h, scale_factor=2.0, mode="nearest"), level
            h = block(h, hots[level])
        return self.halvings.cropped(self.last(functional.leaky_relu(h, SLOPE)).tanh())

    def maps(self, label_map: Tensor) -> list[Tensor]:
        """One-hot maps of every level, from the full size to the coarsest, b k *s each; none of them in the margin."""
        hot = one_hot(label_map, self.num_classes).to(next(self.parameters()).dtype)
        hot = self.halvings.padded(hot).clamp(min=0)
        sizes = [[side // 2**level for side in hot.shape[2:]] for level in range(self.halvings.num + 1)]
        return [pooled(hot, size, self.pyramid) for size in sizes]


class MultiScaleDiscriminator(nn.Module):
    """Patch discriminators of an image and of its halves, each with the features of all its layers.

    Args:
        size: voxels of an image along each axis.
        in_channels: channels of what they see.
        channels: width of the first layer, doubled by each further one up to eightfold.
        num_layers: layers that halve the size.
        num_scales: how many discriminators, each of an image of half the size of that before.

    Raises:
        ValueError: the smallest image is of no patch.
    """

    def __init__(
        self, size: Sequence[int], in_channels: int, channels: int = 64, num_layers: int = 3, num_scales: int = 2
    ) -> None:
        super().__init__()
        smallest = -(-min(size) // 2 ** (num_scales - 1)) // 2**num_layers
        if smallest < 3:  # two more convolutions of 4 voxels
            raise ValueError(
                f"network.init_args.size: images of {list(size)} are too small for discriminator_layers {num_layers} "
                f"at discriminator_scales {num_scales}; lower one of them."
            )
        patches = (PatchDiscriminator(len(size), in_channels, channels, num_layers) for _ in range(num_scales))
        self.scales = nn.ModuleList([spectrally_normalised(each) for each in patches])
        self.pool: Any = {2: functional.avg_pool2d, 3: functional.avg_pool3d}[len(size)]

    def forward(self, image: Tensor) -> list[list[Tensor]]:
        """Of each scale the features of every layer and at last the logits; b c *s -> b c' *s' each."""
        found = []
        for number, patches in enumerate(self.scales):
            if number:
                image = self.pool(image, 3, 2, 1, count_include_pad=False)
            found.append(_features(patches, image))
        return found


def _features(patches: nn.Module, image: Tensor) -> list[Tensor]:
    """What each activation of a patch discriminator gives, and the logits."""
    h, features = image, []
    for layer in patches.children():
        h = layer(h)
        if isinstance(layer, nn.LeakyReLU):
            features.append(h)
    return [*features, h]


class SemanticGAN(nn.Module):
    """SPADE's parts for images of one size.

    Args:
        num_classes: classes of the label map.
        size: voxels of an image along each axis, 2 or 3 of them.
        in_channels: channels of an image.
        latent_channels: channels of a code; 0: no codes and no encoder, so that a map has one image.
        channels: width of generator and encoder at the full size.
        modulation_channels: hidden channels of each block's modulation.
        pyramid: how maps come to the size of a level: `max`, or `nearest` as in the public code, in which what is small
            vanishes.
        discriminator_channels: width of the first layer of each discriminator.
        discriminator_layers: layers of each that halve the size.
        discriminator_scales: how many discriminators.
    """

    def __init__(
        self,
        num_classes: int,
        size: Sequence[int],
        in_channels: int = 1,
        latent_channels: int = 256,
        channels: int = 64,
        modulation_channels: int = 128,
        pyramid: Literal["max", "nearest"] = "max",
        discriminator_channels: int = 64,
        discriminator_layers: int = 3,
        discriminator_scales: int = 2,
    ) -> None:
        super().__init__()
        if num_classes < 1 or latent_channels < 0:
            raise ValueError(
                f"network.init_args.num_classes is {num_classes} and latent_channels {latent_channels}; give at least "
                "1 class, and 0 channels or more."
            )
        if pyramid not in ("max", "nearest"):
            raise ValueError(f"network.init_args.pyramid is {pyramid!r}; give max or nearest.")
        self.size, self.num_classes, self.in_channels = tuple(size), num_classes, in_channels
        self.latent_channels = latent_channels
        self.generator = SPADEGenerator(
            size, num_classes, in_channels, latent_channels, channels, modulation_channels, pyramid
        )
        scales = (discriminator_channels, discriminator_layers, discriminator_scales)
        self.discriminator = MultiScaleDiscriminator(size, num_classes + in_channels, *scales)
        self.encoder = (
            spectrally_normalised(ConvEncoder(size, in_channels, 2 * latent_channels, channels))
            if latent_channels
            else None
        )

    def features(self, label_map: Tensor, image: Tensor) -> list[list[Tensor]]:
        """What the discriminators see in images b c *s beside label maps b 1 *s; as they give it."""
        return self.discriminator(torch.cat([one_hot(label_map, self.num_classes).to(image.dtype), image], 1))
