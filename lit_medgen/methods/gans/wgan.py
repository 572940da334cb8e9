r"""WGAN-GP: a generator and a critic that estimates the Wasserstein distance of its images from real ones.

Gulrajani et al. "Improved Training of Wasserstein GANs". NeurIPS 2017, eq. 3 and algorithm 1; in 3D the baseline
"3D-GAN-GP" of Kwon et al. 2019.

    critic:     D(G(z)) - D(x) + lambda (|grad D(x^)|_2 - 1)^2,   x^ between x and G(z)
    generator:  -D(G(z)),   z ~ N(0, I)

The public code of Kwon et al. updates the generator five times for each update of the critic, the reverse of the paper,
and takes the penalty's norm over channels, so of each voxel by itself. `faithful` does both; with `norm` and
`critic_norm` of the network `batch` and `critic_head` `patches`, what its notebook ran.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_medgen.batch import Batch
from lit_medgen.methods.gans.gan import GAN, gradient_penalty
from lit_medgen.networks.gans import ConvGAN
from lit_medgen.training.adversarial import Player


class WGAN(GAN):
    """A generator against a critic whose gradient is held at norm 1.

    Args:
        network: generator and critic.
        penalty_weight: lambda.
        critic_updates: of the critic, for each of the generator.
        faithful: five updates of the generator for each of the critic, and a norm for each voxel; see above.
        others: see `GAN`.
    """

    def __init__(
        self,
        network: ConvGAN,
        penalty_weight: float = 10.0,
        critic_updates: int = 5,
        faithful: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(network, **others)
        if critic_updates < 1:
            raise ValueError(f"model.init_args.critic_updates is {critic_updates}; give at least 1.")
        self.penalty_weight, self.critic_updates, self.faithful = penalty_weight, critic_updates, faithful

    def players(self) -> Sequence[Player]:
        """The generator, then the critic; a run reads `critic_updates` batches for each of the generator's steps."""
        every = (1, 5) if self.faithful else (self.critic_updates, 1)
        generator = Player("generator", self.loss, None, self.make_optimizer, self.learning_rate_schedule, every[0])
        critic = Player(
            "critic",
            self.critic_loss,
            [self.network.critic],
            self.make_critic_optimizer,
            self.critic_learning_rate_schedule,
            every[1],
            averaged=False,
        )
        return generator, critic

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The generator's; in evaluation also the distance that the critic sees between these images and made ones."""
        made = self.network.critic(self.network.generator(self.codes(len(batch.image)))).float().mean()
        if self.training:
            return {"loss": -made}
        return {"loss": -made, "distance": self.network.critic(batch.image).float().mean() - made}

    def critic_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The critic's, the distance that it estimates, and the penalty."""
        with torch.no_grad():
            made = self.network.generator(self.codes(len(batch.image)))
        critic = self.network.critic
        distance = (critic(batch.image) - critic(made)).float().mean()
        penalty = gradient_penalty(critic, batch.image, made, "channels" if self.faithful else "sample")
        return {
            "critic_loss": self.penalty_weight * penalty - distance,
            "distance": distance,
            "gradient_penalty": penalty,
        }
