r"""KL autoencoder: images as maps of a few continuous channels, the first stage of latent diffusion.

Rombach et al. "High-Resolution Image Synthesis with Latent Diffusion Models". CVPR 2022, section 3.1 and appendix G; in
2D and 3D as in Pinaya et al. "Generative AI for Medical Imaging: extending the MONAI Framework" (2023), appendix B.

    q(z|x) = N(mu(x), diag(sigma(x)^2)),  z = mu + sigma n
    loss   = L_rec + beta KL(q(z|x) | N(0, I)) + lambda L_G

L_rec, L_G, lambda and the discriminator: `lit_medgen.methods.autoencoder`. L_rec is a mean over voxels, the KL
divergence a sum over the latent's values and a mean over images, as in MONAI, whose beta of 1e-8 belongs to that; in
the code of Rombach et al. both are sums, so that their 1e-6 is 1e-6 divided by the number of voxels here. So small a
weight leaves the latent's scale free (a second stage measures it) and the encoder nearly without noise.

Training decodes sampled latents, validation the means, as `reconstruct` does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_medgen.methods.autoencoder import AdversarialAutoencoder, Compressed
from lit_medgen.networks.bottlenecks import DiagonalGaussian, statistics, sums_over_images
from lit_medgen.networks.protocols import ImageAutoencoder


class AutoencoderKL(AdversarialAutoencoder):
    """Compresses images to Gaussian latent maps, and decodes these to images that a discriminator takes for real.

    Args:
        network: encoder and decoder: `Autoencoder` with `log_variance`, or any module that encodes to twice its
            `latent_channels`, means and then log-variances.
        kl_weight: beta, of the KL divergence in nats per image.
        others: see `AdversarialAutoencoder`.
    """

    bottleneck_scores = {  # noqa: RUF012 (a constant)
        "active_channels": "latent channels whose mean varies between images by more than 0.01 (Burda et al. 2016)",
        "kl_per_dimension": "KL divergence from N(0, 1), nats per value of the latent",
        "noise_share": "share of the variance of sampled latents that is the encoder's noise, unpredictable for a "
        "second stage",
        "noise_share_of_channel": "the same of one channel",
    }

    def __init__(self, network: ImageAutoencoder, kl_weight: float = 1e-8, **others: Any) -> None:
        super().__init__(network, **others)
        wanted = 2 * network.latent_channels
        if (found := getattr(network, "encoded_channels", wanted)) != wanted:
            raise ValueError(
                f"model.init_args.network encodes to {found} channels; {type(self).__name__} needs {wanted}, a mean "
                "and a log-variance for each latent channel: set network.init_args.log_variance to true."
            )
        if kl_weight < 0:
            raise ValueError(f"model.init_args.kl_weight is {kl_weight}; give 0 or more.")
        self.kl_weight = kl_weight

    # Images to latents and back.

    def kept(self, images: Tensor) -> Tensor:
        """Means and clamped log-variances of the latents of images, b c *s -> b 2d *z, float32."""
        return DiagonalGaussian.of(self.network.encode(images)).moments

    def latents(self, kept: Tensor, sample: bool = False) -> Tensor:
        """The means, or sampled latents, b 2d *z -> b d *z."""
        latent = DiagonalGaussian.of(kept)
        return latent.sample() if sample else latent.mean

    # The bottleneck.

    def compress(self, features: Tensor) -> Compressed:
        """A sampled latent in training, its mean in evaluation; the loss is the weighted KL divergence."""
        latent = DiagonalGaussian.of(features)
        nats = latent.kl()
        kl = nats.flatten(1).sum(1).mean()
        logged = {"kl": kl, "kl_per_dimension": nats.mean()}
        if not self.training:
            del logged["kl_per_dimension"]  # validation logs that of all its images together
        value = latent.sample() if self.training else latent.mean
        return Compressed(value, latent.moments, self.kl_weight * kl, logged)

    def sums(self, kept: Tensor) -> Tensor:
        """What `statistics` needs, 5 d *z."""
        return sums_over_images(kept)

    def scores_of_sums(self, sums: Tensor) -> dict[str, Tensor]:
        """Active channels, nats per value of the latent, and the share of noise, of all channels and of each."""
        found = statistics(sums)
        of_channels = {f"noise_share_of_channel_{i}": share for i, share in enumerate(torch.unbind(found.noise_shares))}
        return {
            "active_channels": found.active_channels,
            "kl_per_dimension": found.kl_per_dimension,
            "noise_share": found.noise_share,
        } | of_channels
