"""`FirstStage`: an autoencoder that other methods build on.

A first stage makes no images of its own: it reconstructs sources, so that sample grids, `sample` and `evaluate` show
what it keeps, and set the ceiling for any second stage.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_medgen.batch import Condition, sent
from lit_medgen.errors import InputError
from lit_medgen.training.generator import Generator


class FirstStage(Generator):
    """Images to latents and back."""

    required = ("source",)
    reconstructs = True

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """d, *z: channels and size of the latent of an image of the training data's size."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """b c *s in [-1, 1] -> b d *z, the latents that `decode` takes."""

    def kept(self, images: Tensor) -> Tensor:
        """What a latent store keeps of images b c *s: latents b d *z, codes b *z or means and log-variances b 2d *z."""
        return self.encode(images)

    def latents(self, kept: Tensor, sample: bool = False) -> Tensor:
        """The latents that `decode` takes, b d *z, from what a latent store keeps of images.

        Args:
            kept: what `kept` gave.
            sample: whether a latent that is a distribution is sampled; else it is its mean.
        """
        return kept

    def variance(self, kept: Tensor) -> Tensor:
        """Variance of the distributions that `latents` samples from, b d *z; zeros where a latent is none."""
        latents = self.latents(kept)
        channels = latents.shape[1]
        is_distribution = kept.is_floating_point() and kept.shape[1] == 2 * channels
        return kept[:, channels:].exp() if is_distribution else torch.zeros_like(latents)

    def nearest(self, latents: Tensor) -> Tensor:
        """The latents closest to these that `encode` can give, b d *z: where it gives codes, embedded ones."""
        return latents

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """b d *z -> b c *s in [-1, 1]."""

    @property
    def decodes_in_slabs(self) -> bool:
        """Whether `decode_in_slabs` is known: where `decode` is its network's, with images clamped to [-1, 1]."""
        return hasattr(getattr(self, "network", None), "decode_in_slabs")

    def decode_in_slabs(self, latents: Tensor, thickness: int) -> Tensor:
        """The same images within 1e-5, in slabs of so many planes of each feature map, for volumes that are too large.

        InputError if its decoder cannot be applied in slabs.
        """
        if not self.decodes_in_slabs:
            raise InputError(f"{type(self).__name__} decodes in one piece only; leave model.init_args.slabs out.")
        images: Tensor = self.network.decode_in_slabs(latents, thickness)  # type: ignore[union-attr, operator]
        return images.clamp(-1, 1)

    def reconstruct(self, images: Tensor) -> Tensor:
        """b c *s in [-1, 1] -> b c *s in [-1, 1]."""
        return self.decode(self.encode(images))

    @torch.no_grad()
    def surprise(self, images: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        """The mean squared error of each image's reconstruction, b; seeds change nothing."""
        return {"squared_error": (self.reconstruct(images) - images).square().flatten(1).mean(1)}

    @torch.no_grad()
    def sample(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """The reconstructions of `condition.source`, b c *size in [-1, 1]; seeds change nothing."""
        if condition.source is None:
            raise InputError(f"{type(self).__name__} reconstructs images: condition.source is missing.")
        return self.reconstruct(sent(condition.source, self.device))
