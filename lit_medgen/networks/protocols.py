"""What a network of your own must offer: any `torch.nn.Module` with these methods can stand in for ours.

Shapes: b batch, c channels, n slices, y x a plane, *s spatial axes, d latent channels, *z latent spatial axes.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn


class SliceNetwork(Protocol):
    """A network over sets of slices (cDPM's), called as network(x, t, condition).

    Two attributes are read where a network has them: `divisor`, a number that both sides of a slice must be a multiple
    of (else 1), and `reads_prior`, whether it reads `condition.image` also where no slice is given (else False). There
    `FactorPriorCDPM`, which needs such a network, gives the image that it expects; elsewhere it holds zeros.
    """

    def forward(self, x: Any, t: Any, condition: Any, /) -> Any:
        """b c n y x from noisy slices x: b c n y x, their times t: b in [0, 1], and a `Condition`.

        The condition gives image (b c n y x), observed (b n, which slices are given) and slice_index (b n).
        """
        ...


class LatentNetwork(Protocol):
    """A network over latents (LDM's), called as network(z_t, t, condition).

    Attributes are read where a network has them: `dim`, `in_channels` and `out_channels`, which are compared with the
    first stage's latents, and `divisor`, a number that every side of a latent must be a multiple of (else 1).
    """

    def forward(self, z_t: Any, t: Any, condition: Any, /) -> Any:
        """b d *z from noisy latents z_t: b d *z, their times t: b in [0, 1], and a `Condition`."""
        ...


class LabelNetwork(Protocol):
    """A network that tells labels of images (a crop classifier's), called as network(x, t).

    Attributes are read where a network has them: `dim` and `in_channels`, which are compared with the images, and
    `out_channels`, the number of its columns.
    """

    def forward(self, x: Any, t: Any, /) -> Any:
        """b k from images x: b c *s, whose noise is that of times t: b in [0, 1]."""
        ...


class ImageAutoencoder(Protocol):
    """An encoder and a decoder (those of VQGAN and of the KL autoencoder).

    Attributes:
        dim: spatial axes of an image, 2 or 3.
        latent_channels: channels d of the latent map.
        divisor: pixels of an image for each pixel of the map, along each axis.
        last_layer: the weight that makes the image, to which the adversarial loss is balanced.
    """

    dim: int
    latent_channels: int
    divisor: int

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the last layer, which gives the image."""
        ...

    def encode(self, image: Any, /) -> Any:
        """The map of an image; b c *s -> b d *z; for a KL autoencoder b 2d *z, means and then log-variances."""
        ...

    def decode(self, latent: Any, /) -> Any:
        """The image of a map; b d *z -> b c *s."""
        ...


class Discriminator(Protocol):
    """A network that tells real images from synthetic ones (an autoencoder's discriminator)."""

    def forward(self, image: Any, /) -> Any:
        """Logits of any shape, one or many for each image, from b c *s; high where it seems real."""
        ...


class AdversarialNetwork(Protocol):
    """The parts of a GAN as one module (WGAN's), for images of one size.

    Attributes:
        size: voxels of an image along each axis.
        in_channels: channels c of an image.
        latent_channels: channels d of a code.
        generator: images of codes, b d -> b c *s in [-1, 1].
        discriminator: a number for each image, b c *s -> b, high where it seems real.
    """

    size: tuple[int, ...]
    in_channels: int
    latent_channels: int

    @property
    def generator(self) -> nn.Module:
        """The network that makes images of codes."""
        ...

    @property
    def discriminator(self) -> nn.Module:
        """The network that tells real images from made ones."""
        ...

    def children(self) -> Any:
        """The parts, as `torch.nn.Module` has it."""
        ...


class AutoencodingNetwork(AdversarialNetwork, Protocol):
    """The parts of a GAN with an encoder as one module (alpha-WGAN's), for images of one size.

    Attributes are read where a network has them: `gaussian`, whether the encoder gives distributions (else False), and
    `code_discriminator`, a number for each code, b d -> b, high where it seems drawn from the prior (else None).

    Attributes:
        encoder: codes of images, b c *s -> b d; where `gaussian` b 2d, means and then log-variances.
    """

    encoder: nn.Module


def as_module(network: object) -> nn.Module:
    """The network; TypeError if it is no `torch.nn.Module`, whose weights could not be trained or kept."""
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"model.init_args.network: {type(network).__name__} is no torch.nn.Module; let its class be a subclass."
        )
    return network
