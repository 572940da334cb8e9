"""`AutoencodingGAN`: what the GANs with an encoder share: its player, and a discriminator of two kinds of images.

Shapes: b batch, c channels, *s spatial axes, d channels of a code.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lit_medgen.batch import Batch
from lit_medgen.methods.gans.gan import GAN, gradient_penalty
from lit_medgen.networks.protocols import AutoencodingNetwork
from lit_medgen.training.adversarial import Player
from lit_medgen.training.learning_rate import Constant
from lit_medgen.training.method import default_optimizer


class AutoencodingGAN(GAN):
    """A GAN whose generator also reconstructs images, of the codes that an encoder gives them.

    Args:
        network: generator, discriminator and encoder.
        encoder_optimizer: of the encoder.
        encoder_learning_rate_schedule: factor of its rate at each of its own steps; None: constant.
        others: see `GAN`.
    """

    network: AutoencodingNetwork
    every: tuple[int, int, int] = (1, 1, 1)
    """Batches from one update to the next, of generator, encoder and discriminator."""

    def __init__(
        self,
        network: AutoencodingNetwork,
        encoder_optimizer: OptimizerCallable = default_optimizer,
        encoder_learning_rate_schedule: Constant | None = None,
        **others: Any,
    ) -> None:
        super().__init__(network, **others)
        self.make_encoder_optimizer = encoder_optimizer
        self.encoder_learning_rate_schedule = encoder_learning_rate_schedule or Constant()

    def players(self) -> Sequence[Player]:
        """The generator, then the encoder, then the discriminator."""
        encoder = Player(
            "encoder",
            self.encoder_loss,
            [self.network.encoder],
            self.make_encoder_optimizer,
            self.encoder_learning_rate_schedule,
            self.every[1],
        )
        return self.generator_player(self.every[0]), encoder, self.discriminator_player(self.every[2])

    @abstractmethod
    def encoder_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The encoder's loss as "encoder_loss", and what is logged beside it."""

    def refuse_gaussian(self) -> None:
        """ValueError for an encoder that gives distributions, where codes are needed."""
        if getattr(self.network, "gaussian", False):
            raise ValueError(
                f"model.init_args.network.init_args.gaussian is true, but {type(self).__name__} has one code for each "
                "image; set it to false."
            )


class WassersteinAutoencodingGAN(AutoencodingGAN):
    """An autoencoding GAN whose discriminator estimates distances, with its gradient held at norm 1.

    Args:
        penalty_weight: lambda, of the gradient penalties.
        others: see `AutoencodingGAN`.
    """

    def __init__(self, network: AutoencodingNetwork, penalty_weight: float = 10.0, **others: Any) -> None:
        super().__init__(network, **others)
        self.refuse_gaussian()
        self.penalty_weight = penalty_weight

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """D(x^) + D(G(z)) - 2 D(x) and its penalties: between real and reconstructed, and real and made images."""
        with torch.no_grad():
            reconstructed = self.network.generator(self.network.encoder(batch.image))
            made = self.network.generator(self.codes(len(batch.image)))
        discriminator = self.network.discriminator
        real = discriminator(batch.image).float().mean()
        distances = [real - discriminator(images).float().mean() for images in (reconstructed, made)]
        penalty = gradient_penalty(discriminator, batch.image, made)
        penalty = penalty + gradient_penalty(discriminator, batch.image, reconstructed)
        return {
            "discriminator_loss": self.penalty_weight * penalty - distances[0] - distances[1],
            "reconstruction_distance": distances[0],
            "distance": distances[1],
            "gradient_penalty": penalty,
        }
