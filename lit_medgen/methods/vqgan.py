r"""VQGAN: images as maps of discrete codes, learned against a discriminator.

Esser, Rombach, Ommer. "Taming Transformers for High-Resolution Image Synthesis". CVPR 2021; as the first stage of
Bond-Taylor et al. "Unleashing Transformers" (ECCV 2022) and of "Discrete VQ-IHDM: MRI Generation with Vector Quantized
Inverse Heat Dissipation Model" (anonymous, under review).

    loss     = L_rec + |sg[E(x)] - z_q|^2 + beta |sg[z_q] - E(x)|^2 + lambda L_G     (Discrete VQ-IHDM, eq. 4, and L_G)

L_rec, L_G, lambda and the discriminator: `lit_medgen.methods.autoencoder`. Where eq. 4 and the code it comes from
differ: `lit_medgen.networks.quantizer`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_medgen.images.plots import save_usage
from lit_medgen.methods.autoencoder import AdversarialAutoencoder, Compressed
from lit_medgen.networks.protocols import Discriminator, ImageAutoencoder
from lit_medgen.networks.quantizer import NearestNeighbour, Quantized, Quantizer, perplexity, usage


class VQGAN(AdversarialAutoencoder):
    """Compresses images to maps of discrete codes, and decodes these to images that a discriminator takes for real.

    Args:
        network: encoder and decoder: `Autoencoder`, or any module that encodes and decodes (see `ImageAutoencoder`).
        quantizer: turns a latent map into codes; None: `NearestNeighbour` with as many channels as the latent map.
        discriminator: tells real images from reconstructions; None: `PatchDiscriminator`.
        others: see `AdversarialAutoencoder`.
    """

    bottleneck_scores = {  # noqa: RUF012 (a constant)
        "code_usage": "share of the codes that are used",
        "perplexity": "number of equally used codes with the same entropy",
    }

    def __init__(
        self,
        network: ImageAutoencoder,
        quantizer: Quantizer | None = None,
        discriminator: Discriminator | None = None,
        **others: Any,
    ) -> None:
        super().__init__(network, discriminator, **others)
        self.quantizer = quantizer or NearestNeighbour(channels=network.latent_channels)
        if self.quantizer.channels != network.latent_channels:
            raise ValueError(
                f"model.init_args.network.init_args.latent_channels is {network.latent_channels}, but the quantizer "
                f"has {self.quantizer.channels} channels; give the same."
            )
        if getattr(network, "encoded_channels", network.latent_channels) != network.latent_channels:
            raise ValueError("model.init_args.network.init_args.log_variance is true, which codes have no use for.")

    # Images to codes and back.

    def codes(self, images: Tensor) -> Tensor:
        """The codes of images, b c *s -> b *z, int64."""
        return self.quantizer.codes(self.network.encode(images))

    def kept(self, images: Tensor) -> Tensor:
        """The codes of images, b c *s -> b *z, int32."""
        return self.codes(images).int()

    def latents(self, kept: Tensor, sample: bool = False) -> Tensor:
        """The embedded codes, b *z -> b d *z; there is nothing to sample."""
        return self.quantizer.embed(kept.long())

    def nearest(self, latents: Tensor) -> Tensor:
        """The embedded codes closest to latents, b d *z -> b d *z."""
        return self.quantizer.embed(self.quantizer.codes(latents))

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Images of codes, b *z -> b c *s in [-1, 1]."""
        return self.decode(self.quantizer.embed(codes))

    # The bottleneck.

    def compress(self, features: Tensor) -> Compressed:
        """The quantized map; its loss is the last two terms of eq. 4."""
        quantized: Quantized = self.quantizer(features)
        logged = {"codebook": quantized.loss}
        if self.training:
            logged["perplexity"] = perplexity(usage(quantized.codes, self.quantizer.num_codes))
        return Compressed(quantized.latent, quantized.codes, quantized.loss, logged)

    @property
    def code_counts(self) -> Tensor:
        """How often each code was used in the last validation, k."""
        return torch.zeros(self.quantizer.num_codes) if self._sums is None else self._sums

    def sums(self, kept: Tensor) -> Tensor:
        """How often each code occurs, k."""
        return usage(kept.long(), self.quantizer.num_codes)

    def scores_of_sums(self, sums: Tensor) -> dict[str, Tensor]:
        """Share of the codes that are used, and perplexity."""
        return {"code_usage": (sums > 0).float().mean(), "perplexity": perplexity(sums)}

    def plots(self) -> dict[str, Callable[[Path], None]]:
        """How often each code is used for the validation images."""
        if not self.code_counts.any():
            return {}
        counts = self.code_counts.numpy()
        return {"code_usage": lambda path: save_usage(path, counts)}
