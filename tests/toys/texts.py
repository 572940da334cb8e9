"""An image that a text describes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from write_texts import CHANNELS, TOKENS

from lit_medgen.batch import Batch, Condition, sent
from lit_medgen.seeds import SeededNoise
from lit_medgen.training.generator import Generator


class Caption(Generator):
    """Makes an image from noise and the mean token of a text, the empty text of the data where none is given."""

    optional = ("text",)
    null_text: Tensor

    def __init__(self) -> None:
        super().__init__(partial(torch.optim.Adam, lr=1e-2))
        self.network = nn.Conv3d(1 + CHANNELS, 1, 3, padding=1)
        self.register_buffer("null_text", torch.zeros(TOKENS, CHANNELS))

    def setup(self, stage: str) -> None:
        """Takes the empty text."""
        super().setup(stage)
        if stage == "fit" and (null := self.data.text_null()) is not None:
            self.null_text.copy_(null)

    def loss(self, batch: Batch) -> Tensor:
        """Squared error of the image."""
        return (self.show(batch.condition, torch.randn_like(batch.image)) - batch.image).square().mean()

    def sample(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """Images from noise."""
        return self.show(condition, sent(SeededNoise(seeds)((1, *self.needed_spec().size)), self.device))

    def show(self, condition: Condition, noise: Tensor) -> Tensor:
        """Noise b 1 *s -> b 1 *s."""
        null = self.null_text.expand(len(noise), -1, -1)
        text = null if condition.text is None else condition.text
        text = torch.where(text.isnan().flatten(1).all(1)[:, None, None], null, text)
        channels = text.nanmean(1)[:, :, None, None, None].expand(-1, -1, *noise.shape[2:])
        return self.network(torch.cat([noise, channels], dim=1)).tanh()
