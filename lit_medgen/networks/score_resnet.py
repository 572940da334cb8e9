"""Residual networks without levels for variational diffusion: one that sees noise in latents, and a dense autoencoder.

The paper of Medical VDM (sections 2.4 and 2.5) describes both with fully connected layers. Shapes: b batch, d latent
channels, *z latent axes (none where layers are dense), c channels, *s spatial axes, e embedding, w width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from lit_medgen.batch import Condition
from lit_medgen.networks.blocks import TimeEmbedding, conv, group_norm, zero
from lit_medgen.networks.conditioning import ConditionEncoder, Covariates
from lit_medgen.networks.protocols import LatentNetwork, as_module

MAX_EXPONENT = 20
"""Of waves: single precision tells no shorter ones apart in [-1, 1]."""


def layer(dim: int, in_channels: int, out_channels: int) -> nn.Module:
    """A convolution of 3 voxels along each axis, or a fully connected layer where there are none (dim 0)."""
    return conv(dim, in_channels, out_channels) if dim else nn.Linear(in_channels, out_channels)


class FilmBlock(nn.Module):
    """Two layers around a skip connection, scaled and shifted by an embedding (FiLM: Perez et al. 2018).

    Args:
        dim: axes of the features; 0: none.
        width: channels.
        embedding: channels of the embedding; 0: it has none.
    """

    def __init__(self, dim: int, width: int, embedding: int = 0) -> None:
        super().__init__()
        self.norm = group_norm(width)
        self.first, self.second = layer(dim, width, width), zero(layer(dim, width, width))
        self.film = nn.Linear(embedding, 2 * width) if embedding else None

    def forward(self, h: Tensor, embedding: Tensor | None = None) -> Tensor:
        """The features after the block, b w *z -> b w *z, from an embedding b e."""
        inner = self.first(silu(self.norm(h)))
        if self.film is not None and embedding is not None:
            film = self.film(embedding)
            scale, shift = film.view(*film.shape, *[1] * (h.ndim - 2)).chunk(2, dim=1)
            inner = inner * (1 + scale) + shift
        result: Tensor = h + self.second(silu(inner))
        return result


class ScoreResNet(nn.Module):
    """The noise in latents, as z_t plus a residual network; called as network(z_t, level, condition).

    Args:
        dim: axes of the latents, 2 or 3, or 0 for vectors.
        in_channels: channels of the latents.
        width: of the hidden layers; [paper] 128.
        num_blocks: of two layers each; [paper] 10.
        covariates: what it is told of an image, beside the noise level.
    """

    def __init__(
        self,
        dim: int = 2,
        in_channels: int = 1,
        width: int = 128,
        num_blocks: int = 10,
        covariates: Covariates | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.in_channels, self.out_channels = dim, in_channels, in_channels
        self.covariates = covariates or Covariates()
        self.time = TimeEmbedding(width, 4 * width)
        self.encoder = ConditionEncoder(self.covariates, 4 * width) if self.covariates else None
        self.film = nn.Sequential(nn.SiLU(), nn.Linear(4 * width, 4 * width), nn.SiLU())
        self.layer_in = layer(dim, in_channels, width)
        self.blocks = nn.ModuleList([FilmBlock(dim, width, 4 * width) for _ in range(num_blocks)])
        self.norm_out, self.layer_out = group_norm(width), zero(layer(dim, width, in_channels))

    def forward(self, z_t: Tensor, level: Tensor, condition: Condition | None = None) -> Tensor:
        """The noise in z_t, b d *z, of levels in [0, 1], b."""
        embedding = self.time(level)
        if self.encoder is not None:
            embedding = embedding + self.encoder(condition, len(z_t))[0]
        embedding, h = self.film(embedding), self.layer_in(z_t)
        for block in self.blocks:
            h = block(h, embedding)
        result: Tensor = z_t + self.layer_out(silu(self.norm_out(h)))
        return result


class FourierFeatures(nn.Module):
    """A network that reads its input and sines and cosines of it beside it, in which fine differences are large.

    Kingma et al. 2021, appendix C: without them a network does not see which grey value is nearest to a value with
    little noise, and the bound suffers. Called as network(z_t, level, condition).

    Args:
        network: reads c (1 + 2 n) channels for n exponents, where `out_channels` are the c of the images.
        exponents: n of sin(2^n pi z) and cos(2^n pi z); [Kingma et al.] 6 and 7 for 8 bits in [-1, 1].
    """

    def __init__(self, network: LatentNetwork, exponents: Sequence[int] = (6, 7)) -> None:
        super().__init__()
        if not exponents or len({*exponents}) < len(exponents) or any(not 0 <= n <= MAX_EXPONENT for n in exponents):
            raise ValueError(
                f"exponents is {[*exponents]}; give different whole numbers from 0 to {MAX_EXPONENT}, such as [6, 7]."
            )
        self.network, self.exponents = as_module(network), tuple(exponents)
        self.covariates: Covariates = getattr(network, "covariates", None) or Covariates()
        self.divisor: int = getattr(network, "divisor", 1)
        for name in ("dim", "out_channels"):
            if hasattr(network, name):
                setattr(self, name, getattr(network, name))
        copies = 1 + 2 * len(self.exponents)
        read, given = (getattr(network, name, None) for name in ("in_channels", "out_channels"))
        if read is not None and given is not None and read != given * copies:
            raise ValueError(
                f"model.init_args.network.init_args.network.init_args.in_channels is {read}, but {given} channels "
                f"with the sines and cosines of {len(self.exponents)} exponents are {given * copies}; give that."
            )

    def forward(self, z_t: Tensor, level: Tensor, condition: Condition | None = None) -> Tensor:
        """What the network gives for z_t, b d *z, of levels in [0, 1], b."""
        waves = [wave(2.0**n * math.pi * z_t) for n in self.exponents for wave in (torch.sin, torch.cos)]
        result: Tensor = self.network(torch.cat([z_t, *waves], dim=1), level, condition)
        return result


class DenseAutoencoder(nn.Module):
    """An encoder to a vector and a decoder of fully connected residual blocks, for small images of one size.

    Args:
        size: voxels of an image along each axis.
        in_channels: channels of an image.
        latent_channels: of the vector; [paper] 64.
        width: of the hidden layers.
        num_blocks: of encoder and of decoder; [paper] 6.
    """

    divisor = 1

    def __init__(
        self,
        size: Sequence[int],
        in_channels: int = 1,
        latent_channels: int = 64,
        width: int = 512,
        num_blocks: int = 6,
    ) -> None:
        super().__init__()
        self.dim, self.size, self.in_channels = len(size), tuple(size), in_channels
        self.latent_channels = latent_channels
        num = in_channels * math.prod(size)

        def blocks(first: int, last: int) -> nn.Sequential:
            hidden = [FilmBlock(0, width) for _ in range(num_blocks)]
            return nn.Sequential(nn.Linear(first, width), *hidden, group_norm(width), nn.SiLU(), nn.Linear(width, last))

        self.encoder, self.decoder = blocks(num, latent_channels), blocks(latent_channels, num)

    def encode(self, image: Tensor) -> Tensor:
        """The vectors of images, b c *s -> b d."""
        if tuple(image.shape[1:]) != (self.in_channels, *self.size):
            raise ValueError(
                f"size is {list(self.size)} with {self.in_channels} channels, but images are "
                f"{list(image.shape[2:])} with {image.shape[1]}; a dense autoencoder is of one size."
            )
        vector: Tensor = self.encoder(image.flatten(1))
        return vector

    def decode(self, latent: Tensor) -> Tensor:
        """The images of vectors, b d -> b c *s."""
        image: Tensor = self.decoder(latent)
        return image.view(-1, self.in_channels, *self.size)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the last layer, which gives the image."""
        weight: nn.Parameter = self.decoder[-1].weight  # type: ignore[assignment]
        return weight


class LevelNetwork(nn.Module):
    """A network that is told noise levels, called with times: a schedule says which level a time has.

    Args:
        network: called as network(z_t, level, condition).
        level: times b -> levels in [0, 1], b.
    """

    def __init__(self, network: nn.Module, level: nn.Module) -> None:
        super().__init__()
        self.network, self.level = network, level

    def forward(self, z_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """What the network says of z_t, b d *z, at times t, b."""
        level: Tensor = self.level(t)
        prediction: Tensor = self.network(z_t, level.to(torch.promote_types(t.dtype, torch.float32)), condition)
        return prediction
