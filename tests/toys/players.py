"""Three players that take turns in different periods."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from lit_medgen.batch import Batch, Condition, sent
from lit_medgen.seeds import SeededNoise
from lit_medgen.training.adversarial import Adversarial, Player
from lit_medgen.training.generator import Generator


class Trio(Adversarial, Generator):
    """A generator in every batch, a discriminator in every second, an encoder that gives noise back in every third."""

    def __init__(self) -> None:
        super().__init__(partial(torch.optim.Adam, lr=1e-3))
        self.network = nn.Sequential(nn.Conv3d(4, 1, 3, padding=1), nn.Tanh())
        self.discriminator = nn.Sequential(nn.Conv3d(1, 4, 4), nn.AdaptiveAvgPool3d(1), nn.Conv3d(4, 1, 1))
        self.encoder = nn.Conv3d(1, 4, 3, padding=1)

    def players(self) -> Sequence[Player]:
        """In the order of their updates."""
        adam = partial(torch.optim.Adam, lr=1e-2)
        return (
            Player("generator", self.loss, [self.network], self.make_optimizer),
            Player("discriminator", self.judgement, [self.discriminator], adam, every_n_batches=2, averaged=False),
            Player("encoder", self.recovery, [self.encoder], adam, every_n_batches=3, averaged=False),
        )

    def loss(self, batch: Batch) -> Tensor:
        """Of the generator: how surely its images are taken for none, and whether their noise can be told."""
        noise, fake = self.fakes(batch)
        return softplus(-self.discriminator(fake)).mean() + (self.encoder(fake) - noise).square().mean()

    def judgement(self, batch: Batch) -> Tensor:
        """Of the discriminator."""
        fake, real = self.discriminator(self.fakes(batch)[1]), self.discriminator(batch.image)
        return softplus(fake).mean() + softplus(-real).mean()

    def recovery(self, batch: Batch) -> Tensor:
        """Of the encoder."""
        noise, fake = self.fakes(batch)
        return (self.encoder(fake) - noise).square().mean()

    def fakes(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Noise b 4 *s, and the images b 1 *s that are made of it."""
        noise = torch.randn(len(batch.image), 4, *batch.image.shape[2:], device=self.device)
        return noise, self.network(noise)

    def sample(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """What the generator makes."""
        return self.network(sent(SeededNoise(seeds)((4, *self.needed_spec().size)), self.device))
