"""`FirstStage`: an autoencoder that other methods build on.

A first stage makes no images of its own; asked for samples, it reconstructs given ones, so that sample grids, `sample`
and `evaluate` show what it keeps, and set the ceiling for any second stage.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_medgen.batch import Condition, sent
from lit_medgen.errors import InputError
from lit_medgen.training.method import Generator


class FirstStage(Generator):
    """Images to latents and back."""

    makes = "reconstruction"

    originals: Tensor | None = None
    """n c *s in [-1, 1], the images that "samples" reconstruct: seed i is the i-th."""

    @property
    def most_samples(self) -> int:  # type: ignore[override]
        """As many as there are originals."""
        return 0 if self.originals is None else len(self.originals)

    def check_seeds(self, seeds: Sequence[int]) -> None:
        """InputError if a seed is the number of an image that is not there."""
        if self.originals is None or max(seeds) >= self.most_samples:
            raise InputError(
                f"{type(self).__name__} reconstructs images and makes none of its own; there are {self.most_samples}, "
                "so give fewer (--num) or smaller seeds."
            )

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """d, *z: channels and size of the latent of an image of the training data's size."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """b c *s in [-1, 1] -> b d *z, the latents that `decode` takes."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """b d *z -> b c *s in [-1, 1]."""

    def reconstruct(self, images: Tensor) -> Tensor:
        """b c *s in [-1, 1] -> b c *s in [-1, 1]."""
        return self.decode(self.encode(images))

    @torch.no_grad()
    def sample(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """Reconstructions of `originals[seeds]`, b c *size in [-1, 1]."""
        self.check_seeds(seeds)
        assert self.originals is not None
        return self.reconstruct(sent(self.originals[list(seeds)], self.device))
