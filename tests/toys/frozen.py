"""A method on a frozen part that holds a frozen part itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lit_medgen.batch import Batch, Condition, sent
from lit_medgen.seeds import SeededNoise
from lit_medgen.training.first_stage import FirstStage
from lit_medgen.training.frozen import FrozenPart
from lit_medgen.training.generator import Generator


class Coder(FirstStage):
    """An autoencoder that halves every side."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Conv3d(1, 2, 2, stride=2), nn.ConvTranspose3d(2, 1, 2, stride=2)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Two channels on half the grid."""
        return (2, *(side // 2 for side in self.needed_spec().size))

    def loss(self, batch: Batch) -> Tensor:
        """Squared error of the reconstruction."""
        return (self.reconstruct(batch.image) - batch.image).square().mean()

    def encode(self, images: Tensor) -> Tensor:
        """b 1 *s -> b 2 *z."""
        return self.encoder(images)

    def decode(self, latents: Tensor) -> Tensor:
        """b 2 *z -> b 1 *s."""
        return self.decoder(latents).tanh()


class Prior(Generator):
    """Makes latents of a frozen first stage from noise.

    Args:
        first: checkpoint of the first stage.
    """

    def __init__(self, first: str) -> None:
        super().__init__()
        self.frozen_parts = {"first": FrozenPart(Path(first), FirstStage, "fit --model toys.Coder")}

    def build(self) -> None:
        """A network for the latents at hand."""
        channels = self.first.latent_shape[0]
        self.network = nn.Conv3d(channels, channels, 3, padding=1)

    def loss(self, batch: Batch) -> Tensor:
        """Squared error of latents from noisy ones."""
        latents = self.first.encode(batch.image)
        return (self.network(latents + torch.randn_like(latents)) - latents).square().mean()

    def sample(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """Decoded latents."""
        return self.first.decode(self.network(sent(SeededNoise(seeds)(self.first.latent_shape), self.device)))


class Refiner(Generator):
    """Sharpens what a frozen prior makes, which holds its first stage.

    Args:
        base: checkpoint of the prior.
    """

    def __init__(self, base: str) -> None:
        super().__init__()
        self.frozen_parts = {"base": FrozenPart(Path(base), Prior, "fit --model toys.Prior")}
        self.network, self.dropout = nn.Conv3d(1, 1, 3, padding=1), nn.Dropout(0.5)

    def loss(self, batch: Batch) -> Tensor:
        """Squared error of images from their reconstructions by the first stage of the prior."""
        coarse = self.base.first.reconstruct(batch.image)
        return (self.network(self.dropout(coarse)) - batch.image).square().mean()

    def sample(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """The prior's images, sharpened."""
        return self.network(self.base.sample(condition, seeds)).tanh()
