"""Images of the size that a view gives, crops for example."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from lit_medgen.batch import Batch, Condition, sent
from lit_medgen.seeds import SeededNoise
from lit_medgen.training.generator import Generator


class Patch(Generator):
    """Makes images of any size from noise."""

    def __init__(self) -> None:
        super().__init__(partial(torch.optim.Adam, lr=1e-2))
        self.network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 1, 3, padding=1), nn.Tanh())

    def loss(self, batch: Batch) -> Tensor:
        """Squared error of images from noisy ones."""
        return (self.network(batch.image + torch.randn_like(batch.image)) - batch.image).square().mean()

    def sample(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """Images of the size of the data's items."""
        return self.network(sent(SeededNoise(seeds)((1, *self.needed_spec().size)), self.device))
