r"""The bottleneck of a KL autoencoder: a latent map as a normal distribution of every one of its values.

    q(z|x) = N(mu, diag(sigma^2)),   z = mu + sigma n,   n ~ N(0, I)              (Kingma & Welling 2014, section 2.4)
    KL(q | N(0, I)) = sum over the latent's values of (mu^2 + sigma^2 - 1 - log sigma^2) / 2      (their eq. 10)

What such an encoder kept of the images is described by three numbers (`Statistics`): how many channels carry
information, how many nats each value of the latent carries, and how much of the latent's variance is the encoder's own
noise. The quantizers of VQGAN stand in `lit_medgen.networks.quantizer`. Shapes: b batch, d latent channels, *z latent
spatial axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MIN_LOG_VARIANCE, MAX_LOG_VARIANCE = -30.0, 20.0
"""Range of the log-variance, as in the code of Rombach et al. 2022: exp() of an unbounded one overflows."""
ACTIVE = 0.01
"""Variance over images above which a mean is active (A_u of Burda et al. 2016, "Importance Weighted Autoencoders")."""


@dataclass(frozen=True)
class DiagonalGaussian:
    """A normal distribution of each value of latent maps.

    Attributes:
        mean: b d *z, float32.
        log_variance: b d *z, float32.
    """

    mean: Tensor
    log_variance: Tensor

    @classmethod
    def of(cls, moments: Tensor) -> DiagonalGaussian:
        """The distribution from b 2d *z, the means and then the log-variances, which are clamped; computed in float32.

        Autocast leaves all that follows in float32: none of it is a convolution or a product of matrices.
        """
        mean, log_variance = moments.float().chunk(2, dim=1)
        return cls(mean, log_variance.clamp(MIN_LOG_VARIANCE, MAX_LOG_VARIANCE))

    @property
    def moments(self) -> Tensor:
        """Means and clamped log-variances, b 2d *z, float32."""
        return torch.cat([self.mean, self.log_variance], dim=1)

    @property
    def variance(self) -> Tensor:
        """The variances, b d *z."""
        return self.log_variance.exp()

    def sample(self) -> Tensor:
        """Latents mean + sigma noise, b d *z, the noise from torch's generator."""
        return self.mean + (self.log_variance / 2).exp() * torch.randn_like(self.mean)

    def kl(self) -> Tensor:
        """KL divergence from N(0, 1) of each value, b d *z, nats (Kingma & Welling 2014, eq. 10)."""
        return (self.mean.square() + self.variance - 1 - self.log_variance) / 2


@dataclass(frozen=True)
class Statistics:
    """What an encoder to distributions makes of a set of images.

    Attributes:
        active_channels: channels whose mean varies between images: its variance over images, averaged over the
            latent's voxels, exceeds `ACTIVE`. A collapsed channel has the same mean for every image.
        kl_per_dimension: KL divergence from N(0, 1), nats per value of the latent.
        noise_share: E[sigma^2] / (Var[mu] + E[sigma^2]), summed over channels above and below the line: the share of
            the variance of sampled latents that is the encoder's noise. No second stage can predict it, so it is a
            floor of a latent diffusion model's loss where that is trained on sampled latents.
        noise_shares: the same of each channel, d.
    """

    active_channels: Tensor
    kl_per_dimension: Tensor
    noise_share: Tensor
    noise_shares: Tensor


def sums_over_images(moments: Tensor) -> Tensor:
    """What `statistics` is computed from, added up over images, so that sums of any batches and processes add up too.

    Args:
        moments: b 2d *z, means and log-variances.

    Returns:
        5 d *z, float64: the number of images, and the sums over them of mu, mu^2, sigma^2 and the KL divergence.
    """
    latent = DiagonalGaussian.of(moments)
    mean, variance = latent.mean.double(), latent.variance.double()
    parts = [torch.ones_like(mean), mean, mean.square(), variance, latent.kl().double()]
    return torch.stack([part.sum(0) for part in parts])


def statistics(sums: Tensor) -> Statistics:
    """The statistics of all images whose sums were added up; 5 d *z, see `sums_over_images`."""
    _, mean, square, variance, kl = sums / sums[0]
    over_images = (square - mean.square()).flatten(1).clamp(min=0)  # d n
    of_means = square.flatten(1).mean(1) - mean.flatten(1).mean(1).square()  # d, over images and voxels
    noise = variance.flatten(1).mean(1)
    total = of_means.clamp(min=0) + noise
    return Statistics(
        active_channels=(over_images.mean(1) > ACTIVE).sum().float(),
        kl_per_dimension=kl.mean().float(),
        noise_share=(noise.sum() / total.sum()).float(),
        noise_shares=(noise / total).float(),
    )
