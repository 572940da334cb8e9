"""An image that is made from another one, of another size and with two channels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from lit_medgen.batch import Batch, Condition, DataSpec, sent
from lit_medgen.errors import InputError
from lit_medgen.seeds import SeededNoise
from lit_medgen.training.generator import Generator


class Translator(Generator):
    """Brings a coarse source of two channels onto the grid of the image, and translates it.

    Args:
        num_channels: of the sources.
    """

    required = ("source",)

    def __init__(self, num_channels: int = 2) -> None:
        super().__init__(partial(torch.optim.Adam, lr=1e-2))
        self.network = nn.Conv3d(num_channels + 1, 1, 3, padding=1)

    def check_shape(self, shape: DataSpec) -> None:
        """InputError for sources of another number of channels."""
        if (expected := self.network.in_channels - 1) != len(shape.sources):
            raise InputError(f"model.init_args.num_channels is {expected}; the sources have {len(shape.sources)}.")

    def loss(self, batch: Batch) -> Tensor:
        """Squared error of the translation."""
        return (self.translate(batch.condition, torch.randn_like(batch.image)) - batch.image).square().mean()

    def sample(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """Translations of the sources."""
        return self.translate(condition, sent(SeededNoise(seeds)((1, *self.needed_spec().size)), self.device))

    def translate(self, condition: Condition, noise: Tensor) -> Tensor:
        """Noise b 1 *s -> b 1 *s."""
        assert condition.source is not None
        return self.network(torch.cat([interpolate(condition.source, noise.shape[2:]), noise], dim=1)).tanh()
