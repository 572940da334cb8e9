"""`GAN`: what the adversarial baselines share, images of codes that a discriminator learns to tell from real ones.

Shapes: b batch, c channels, *s spatial axes, d channels of a code.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from lit_medgen.batch import Batch, Condition, DataSpec, sent
from lit_medgen.errors import InputError
from lit_medgen.networks.protocols import AdversarialNetwork, as_module
from lit_medgen.seeds import SeededNoise
from lit_medgen.training.adversarial import Adversarial, Player
from lit_medgen.training.fitting import refuse_other_channels
from lit_medgen.training.generator import Generator
from lit_medgen.training.learning_rate import Constant
from lit_medgen.training.method import default_optimizer


class GAN(Adversarial, Generator):
    """An adversarial method whose images are those of codes drawn from N(0, I).

    Args:
        network: the parts, as one module: `generator` (b d -> b c *s), `discriminator` (b c *s -> b) and what a method
            needs besides, with the attributes `size`, `in_channels` and `latent_channels`.
        optimizer: of the generator, and of what is trained with it.
        discriminator_optimizer: of the discriminator.
        learning_rate_schedule: factor of the generator's rate at each of its steps; None: constant.
        discriminator_learning_rate_schedule: factor of its rate at each of its own steps; None: constant.
    """

    def __init__(
        self,
        network: AdversarialNetwork,
        optimizer: OptimizerCallable = default_optimizer,
        discriminator_optimizer: OptimizerCallable = default_optimizer,
        learning_rate_schedule: Constant | None = None,
        discriminator_learning_rate_schedule: Constant | None = None,
    ) -> None:
        super().__init__(optimizer, learning_rate_schedule)
        as_module(network)
        self.network = network
        self.make_discriminator_optimizer = discriminator_optimizer
        self.discriminator_learning_rate_schedule = discriminator_learning_rate_schedule or Constant()

    def check_shape(self, shape: DataSpec) -> None:
        """InputError if the images are of another size than the network."""
        if tuple(shape.size) != tuple(self.network.size) or shape.slice_axis:
            raise InputError(
                f"model.init_args.network.init_args.size is {list(self.network.size)}, but images are "
                f"{list(shape.size)}; set size to that of the data, and view to data_modules.OneSlice for two axes."
            )
        refuse_other_channels("network.init_args.in_channels", self.network.in_channels, shape)

    def networks_for_speed(self) -> list[nn.Module]:
        """The generator, the discriminator and the other parts of the network."""
        return list(self.network.children())

    @abstractmethod
    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The discriminator's loss as "discriminator_loss", and what is logged beside it."""

    def generator_player(self, every: int = 1) -> Player:
        """The generator, with all that no other player trains, updated once in so many batches."""
        return Player("generator", self.loss, None, self.make_optimizer, self.learning_rate_schedule, every)

    def discriminator_player(self, every: int = 1) -> Player:
        """The discriminator, which samples are not made with, updated once in so many batches."""
        return Player(
            "discriminator",
            self.discriminator_loss,
            [self.network.discriminator],
            self.make_discriminator_optimizer,
            self.discriminator_learning_rate_schedule,
            every,
            averaged=False,
        )

    def codes(self, num: int) -> Tensor:
        """Codes from the prior, num d, drawn from torch's generator."""
        return torch.randn(num, self.network.latent_channels, device=self.device)

    @torch.no_grad()
    def sample(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """The image of a code for each seed, b c *s."""
        codes = sent(SeededNoise(seeds)((self.network.latent_channels,)), self.device)
        images: Tensor = self.network.generator(codes)
        return images


def gradient_penalty(
    discriminator: Callable[[Tensor], Tensor],
    real: Tensor,
    made: Tensor,
    over: Literal["sample", "channels"] = "sample",
) -> Tensor:
    """Mean of (|gradient| - 1)^2 of a discriminator between real and made (Gulrajani et al. 2017, eq. 3), a scalar.

    Each image, or code, has its own place between the two, alike in all its voxels, and its own norm. The
    discriminator must judge each by itself, or the gradient is of others too. Computed in float32.

    Args:
        discriminator: b ... -> b.
        real: b ..., real images, or codes of the prior.
        made: b ..., images or codes that were made.
        over: what a norm is taken over: all of an image's voxels, or (as a public WGAN) the channels of each voxel.
    """
    share = torch.rand(len(real), *[1] * (real.ndim - 1), device=real.device)
    with torch.autocast(real.device.type, enabled=False):
        between = (share * real.float() + (1 - share) * made.detach().float()).requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(discriminator(between).sum(), between, create_graph=True)
        along = gradient.flatten(1) if over == "sample" else gradient
        return (torch.linalg.vector_norm(along, dim=1) - 1).square().mean()
