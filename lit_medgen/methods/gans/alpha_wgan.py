r"""alpha-WGAN: an autoencoder whose images and codes are each held to what a discriminator has seen of real ones.

Kwon et al. "Generation of 3D Brain MRI Using Auto-Encoding Generative Adversarial Networks". MICCAI 2019, on the
alpha-GAN of Rosca et al. 2017. With z ~ N(0, I), the code z^ = E(x) of an image x and its reconstruction x^ = G(z^):

    generator:           w |x^ - x|_1 - D(x^) - D(G(z))
    encoder:             w |x^ - x|_1 - D(x^) - C(z^)
    discriminator:       D(x^) + D(G(z)) - 2 D(x) + lambda (penalty between x and G(z) + that between x and x^)
    code discriminator:  C(z^) - C(z) + lambda penalty between z and z^

each in every batch, and each with the updates of those before it. A penalty is (|gradient|_2 - 1)^2 of each image or
code by itself (`gradient_penalty`).

The public notebook differs, and so does what it ran: the gradient of the generator is taken twice (two steps of its
optimizer); the encoder has no term of codes, C(z^) is added up but left out of what is minimised; and the code
discriminator reads a C(z^) that was computed while it was held constant, so it learns from -C(z) and the penalty
alone. `faithful` does these, over two batches of its own: the generator moves in both, the others in the second.
With `norm` and `discriminator_norm` of the network `batch`, it is that notebook but for the batches: there, the
discriminator has images of its own, and both updates of the generator have the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional

from lit_medgen.batch import Batch
from lit_medgen.methods.gans.autoencoding import WassersteinAutoencodingGAN
from lit_medgen.methods.gans.gan import gradient_penalty
from lit_medgen.networks.protocols import AutoencodingNetwork
from lit_medgen.training.adversarial import Player
from lit_medgen.training.learning_rate import Constant
from lit_medgen.training.method import default_optimizer


class AlphaWGAN(WassersteinAutoencodingGAN):
    """An autoencoder between a discriminator of images and one of codes.

    Args:
        network: generator, encoder, discriminator and code discriminator.
        reconstruction_weight: w.
        code_discriminator_optimizer: of the code discriminator.
        code_discriminator_learning_rate_schedule: factor of its rate at each of its own steps; None: constant.
        faithful: what the public notebook did; see above.
        others: see `WassersteinAutoencodingGAN`.
    """

    def __init__(
        self,
        network: AutoencodingNetwork,
        reconstruction_weight: float = 10.0,
        code_discriminator_optimizer: OptimizerCallable = default_optimizer,
        code_discriminator_learning_rate_schedule: Constant | None = None,
        faithful: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(network, **others)
        if getattr(network, "code_discriminator", None) is None:
            raise ValueError(
                "model.init_args.network.init_args.code_discriminator_hidden is 0, but AlphaWGAN has a discriminator "
                "of codes; give its width, such as 4096."
            )
        self.reconstruction_weight, self.faithful = reconstruction_weight, faithful
        self.make_code_discriminator_optimizer = code_discriminator_optimizer
        self.code_discriminator_learning_rate_schedule = code_discriminator_learning_rate_schedule or Constant()
        self.every = (1, 2, 2) if faithful else (1, 1, 1)

    @property
    def code_discriminator(self) -> nn.Module:
        """The discriminator of codes, b d -> b."""
        part: nn.Module = self.network.code_discriminator  # type: ignore[attr-defined]
        return part

    def players(self) -> Sequence[Player]:
        """The generator, the encoder, the discriminator, and the code discriminator."""
        last = Player(
            "code_discriminator",
            self.code_discriminator_loss,
            [self.code_discriminator],
            self.make_code_discriminator_optimizer,
            self.code_discriminator_learning_rate_schedule,
            self.every[2],
            averaged=False,
        )
        return *super().players(), last

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The generator's loss, the error of reconstructions, and how real the discriminator finds its images."""
        reconstructed = self.network.generator(self.network.encoder(batch.image))
        made = self.network.generator(self.codes(len(batch.image)))
        l1 = functional.l1_loss(reconstructed.float(), batch.image)
        judged = self.network.discriminator(reconstructed).float().mean()
        judged = judged + self.network.discriminator(made).float().mean()
        return {"loss": self.reconstruction_weight * l1 - judged, "l1": l1, "discriminator_of_made": judged}

    def encoder_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The encoder's loss, and how likely a code of the prior the code discriminator finds its codes."""
        code = self.network.encoder(batch.image)
        reconstructed = self.network.generator(code)
        l1 = functional.l1_loss(reconstructed.float(), batch.image)
        judged = self.network.discriminator(reconstructed).float().mean()
        of_code = self.code_discriminator(code).float().mean()
        loss = self.reconstruction_weight * l1 - judged - (0 if self.faithful else of_code)
        return {"encoder_loss": loss, "code_discriminator_of_codes": of_code}

    def code_discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The code discriminator's loss, and the distance between codes and prior that it estimates."""
        with torch.no_grad():
            code = self.network.encoder(batch.image)
        prior = self.codes(len(code))
        of_code = self.code_discriminator(code).float().mean()
        distance = self.code_discriminator(prior).float().mean() - (of_code.detach() if self.faithful else of_code)
        penalty = gradient_penalty(self.code_discriminator, prior, code)
        return {
            "code_discriminator_loss": self.penalty_weight * penalty - distance,
            "code_distance": distance,
            "code_gradient_penalty": penalty,
        }
