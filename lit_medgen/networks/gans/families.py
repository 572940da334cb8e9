"""What a GAN is made of, as one module for images of one size: a generator, a discriminator, and what else.

A network of your own is any module with these parts and the attributes `size` and `in_channels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from lit_medgen.networks.gans.convolutional import (
    CodeDiscriminator,
    ConvDiscriminator,
    ConvEncoder,
    ConvGenerator,
    Norm,
)


class ConvGAN(nn.Module):
    """A generator and a discriminator of plain convolutions (WGAN's).

    Args:
        size: voxels of an image along each axis, 2 or 3 of them.
        in_channels: channels of an image.
        latent_channels: channels of a code.
        channels: width at the finest level, doubled by each coarser one up to eightfold.
        norm: normalisation of all but the discriminators; `batch` in the public code.
        discriminator_norm: that of the discriminators; `batch` in the public code, which no gradient penalty suits.
        discriminator_head: see `ConvDiscriminator`; `patches` in the public WGAN.
    """

    def __init__(
        self,
        size: Sequence[int],
        in_channels: int = 1,
        latent_channels: int = 1000,
        channels: int = 64,
        norm: Norm = "group",
        discriminator_norm: Norm = "group",
        discriminator_head: Literal["whole", "patches"] = "whole",
    ) -> None:
        super().__init__()
        self.size, self.in_channels, self.latent_channels = tuple(size), in_channels, latent_channels
        self.generator = ConvGenerator(size, in_channels, latent_channels, channels, norm)
        self.discriminator = ConvDiscriminator(size, in_channels, channels, discriminator_norm, discriminator_head)


class ConvAutoencodingGAN(ConvGAN):
    """A generator, a discriminator, an encoder, and a discriminator of codes where there are hidden channels for one.

    Args:
        size: voxels of an image along each axis, 2 or 3 of them.
        in_channels: channels of an image.
        latent_channels: channels of a code.
        channels: width at the finest level, doubled by each coarser one up to eightfold.
        norm: normalisation of all but the discriminators; `batch` in the public code.
        discriminator_norm: that of the discriminators; `batch` in the public code, which no gradient penalty suits.
        gaussian: whether the encoder gives a mean and a log-variance for each channel of a code (VAE-GAN's).
        encoder_hidden: width of a layer between the encoder's coarsest grid and the code; 0: none.
        code_discriminator_hidden: width of the discriminator of codes (alpha-WGAN's); 0: none.
    """

    def __init__(
        self,
        size: Sequence[int],
        in_channels: int = 1,
        latent_channels: int = 1000,
        channels: int = 64,
        norm: Norm = "group",
        discriminator_norm: Norm = "group",
        gaussian: bool = False,
        encoder_hidden: int = 0,
        code_discriminator_hidden: int = 0,
    ) -> None:
        super().__init__(size, in_channels, latent_channels, channels, norm, discriminator_norm)
        num = latent_channels * (2 if gaussian else 1)
        self.gaussian = gaussian
        self.encoder = ConvEncoder(size, in_channels, num, channels, norm, encoder_hidden)
        self.code_discriminator = (
            CodeDiscriminator(
                latent_channels, code_discriminator_hidden, "batch" if discriminator_norm == "batch" else "none"
            )
            if code_discriminator_hidden
            else None
        )
