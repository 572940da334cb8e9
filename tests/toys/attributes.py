"""An image that shows attributes of which any may be unknown."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from lit_medgen.batch import Batch, Condition, sent
from lit_medgen.seeds import SeededNoise
from lit_medgen.training.generator import Generator


class Portrait(Generator):
    """Makes an image from noise, age and sex; an attribute that is not given has an embedding of its own."""

    optional = ("attributes",)
    attributes = ("age_years", "sex")

    def __init__(self) -> None:
        super().__init__(partial(torch.optim.Adam, lr=1e-2))
        self.network, self.unknown = nn.Conv3d(3, 1, 3, padding=1), nn.Parameter(torch.zeros(2))

    def loss(self, batch: Batch) -> Tensor:
        """Squared error of the image, with each attribute left out of every second one."""
        rows = {name: torch.rand(len(batch.image), device=self.device) < 0.5 for name in self.attributes}
        condition = batch.condition.drop_attributes(rows)
        return (self.show(condition, torch.randn_like(batch.image)) - batch.image).square().mean()

    def sample(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """Images from noise."""
        return self.show(condition, sent(SeededNoise(seeds)((1, *self.needed_spec().size)), self.device))

    def show(self, condition: Condition, noise: Tensor) -> Tensor:
        """Noise b 1 *s -> b 1 *s."""
        channels = [noise]
        for name, unknown in zip(self.attributes, self.unknown, strict=True):
            low, high = self.needed_spec().attributes[name]
            nothing = torch.full((len(noise),), torch.nan, device=self.device)
            value = (condition.attributes.get(name, nothing) - low) / (high - low)
            known = torch.where(value.isnan(), unknown, value)
            channels.append(known.view(-1, 1, 1, 1, 1).expand_as(noise))
        return self.network(torch.cat(channels, dim=1)).tanh()
