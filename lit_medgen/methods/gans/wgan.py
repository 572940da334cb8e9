r"""WGAN-GP: a generator and a discriminator that estimates the Wasserstein distance of its images from real ones.

Gulrajani et al. "Improved Training of Wasserstein GANs". NeurIPS 2017, eq. 3 and algorithm 1; in 3D the baseline
"3D-GAN-GP" of Kwon et al. 2019.

    discriminator:     D(G(z)) - D(x) + lambda (|grad D(x^)|_2 - 1)^2,   x^ between x and G(z)
    generator:  -D(G(z)),   z ~ N(0, I)

The public code of Kwon et al. updates the generator five times for each update of the discriminator, the reverse of the
paper, and takes the penalty's norm over channels, so of each voxel by itself. `faithful` does both; with `norm` and
`discriminator_norm` of the network `batch` and `discriminator_head` `patches`, what its notebook ran.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_medgen.batch import Batch
from lit_medgen.methods.gans.gan import GAN, gradient_penalty
from lit_medgen.networks.protocols import AdversarialNetwork
from lit_medgen.training.adversarial import Player


class WGAN(GAN):
    """A generator against a discriminator whose gradient is held at norm 1.

    Args:
        network: generator and discriminator.
        penalty_weight: lambda.
        discriminator_updates: of the discriminator, for each of the generator.
        faithful: five updates of the generator for each of the discriminator, and a norm for each voxel; see above.
        others: see `GAN`.
    """

    def __init__(
        self,
        network: AdversarialNetwork,
        penalty_weight: float = 10.0,
        discriminator_updates: int = 5,
        faithful: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(network, **others)
        if discriminator_updates < 1:
            raise ValueError(f"model.init_args.discriminator_updates is {discriminator_updates}; give at least 1.")
        self.penalty_weight, self.discriminator_updates, self.faithful = penalty_weight, discriminator_updates, faithful

    def players(self) -> Sequence[Player]:
        """The generator, then the discriminator; a run reads `discriminator_updates` batches a step."""
        every = (1, 5) if self.faithful else (self.discriminator_updates, 1)
        return self.generator_player(every[0]), self.discriminator_player(every[1])

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The generator's; in evaluation also the distance between these images and made ones."""
        made = self.network.discriminator(self.network.generator(self.codes(len(batch.image)))).float().mean()
        if self.training:
            return {"loss": -made}
        return {"loss": -made, "distance": self.network.discriminator(batch.image).float().mean() - made}

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The discriminator's, the distance that it estimates, and the penalty."""
        with torch.no_grad():
            made = self.network.generator(self.codes(len(batch.image)))
        discriminator = self.network.discriminator
        distance = (discriminator(batch.image) - discriminator(made)).float().mean()
        penalty = gradient_penalty(discriminator, batch.image, made, "channels" if self.faithful else "sample")
        return {
            "discriminator_loss": self.penalty_weight * penalty - distance,
            "distance": distance,
            "gradient_penalty": penalty,
        }
