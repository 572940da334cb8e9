r"""VAE-GAN: a variational autoencoder whose decoder is a generator too, and whose errors a discriminator may measure.

Larsen et al. "Autoencoding beyond pixels using a learned similarity metric". ICML 2016, eq. 5 to 9 and algorithm 1; in
3D the baseline "3D-VAE-GAN" of Kwon et al. 2019. With z ~ N(0, I), a code z^ ~ q(z|x) = N(mu(x), sigma(x)^2 I) and its
image x^ = G(z^):

    encoder:        KL(q(z|x) | N(0, I)) + |f(x) - f(x^)|^2 / 2                         (their eq. 6 to 8)
    generator:      gamma mean |f(x) - f(x^)|^2 - log D(x^) - log D(G(z))
    discriminator:  -log D(x) - log(1 - D(x^)) - log(1 - D(G(z)))                       (their eq. 5)

f(x) are the discriminator's features of its coarsest level, or x itself (`rec_space`). No adversarial term reaches the
encoder, and no reconstruction the discriminator (their section 2.4). The generator maximises log D, as is usual,
instead of minimising log(1 - D).

The public code of Kwon et al. compares pixels, divides the KL by the channels of a code and takes 10 times the mean
squared error beside it: at 64^3 voxels and 1000 channels, as if voxels had a standard deviation of 3.6, so that codes
may keep next to nothing. Its generator minimises log(1 - D). `faithful` does these. Its three players share one graph,
whose weights have changed by the time that the encoder's gradient is taken; here each player's loss is computed anew.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, softplus

from lit_medgen.batch import Batch
from lit_medgen.methods.gans.autoencoding import AutoencodingGAN
from lit_medgen.networks.bottlenecks import DiagonalGaussian
from lit_medgen.networks.protocols import AutoencodingNetwork

FAITHFUL_ENCODER_WEIGHT = 10.0
"""Factor of the encoder's mean squared error in the public code."""


class VAEGAN(AutoencodingGAN):
    """A variational autoencoder with a discriminator of its reconstructions and of the images of the prior's codes.

    Args:
        network: generator, discriminator and an encoder that gives means and log-variances.
        rec_space: where images are compared with their reconstructions: `features` of the discriminator's coarsest
            level, for which it needs the methods of `ConvDiscriminator`, or `pixel`.
        reconstruction_weight: gamma, of the generator.
        kl_weight: factor of the encoder's KL.
        faithful: the public code's losses; see above.
        others: see `AutoencodingGAN`.
    """

    def __init__(
        self,
        network: AutoencodingNetwork,
        rec_space: Literal["pixel", "features"] = "features",
        reconstruction_weight: float = 20.0,
        kl_weight: float = 1.0,
        faithful: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(network, **others)
        if not getattr(network, "gaussian", False):
            raise ValueError(
                "model.init_args.network.init_args.gaussian is false, but VAEGAN's codes are drawn; set it to true."
            )
        self.rec_space = "pixel" if faithful else rec_space
        self.reconstruction_weight, self.kl_weight, self.faithful = reconstruction_weight, kl_weight, faithful

    def encoded(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of images, drawn from torch's generator, b d, and the KL of each from the prior, b; from b c *s."""
        posterior = DiagonalGaussian.of(self.network.encoder(image))
        return posterior.sample(), posterior.kl().sum(1)

    def compared(self, image: Tensor) -> Tensor:
        """f(x), in which images are compared; b c *s -> b ..., float32."""
        if self.rec_space == "pixel":
            return image.float()
        features: list[Tensor] = self.network.discriminator.features(image)  # type: ignore[operator]
        return features[-1].float()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The generator's loss, its error of reconstructions where they are compared, and its adversarial part."""
        code, _ = self.encoded(batch.image)
        reconstructed, made = self.network.generator(code), self.network.generator(self.codes(len(batch.image)))
        error = mse_loss(self.compared(reconstructed), self.compared(batch.image))
        logits = [self.network.discriminator(images).float() for images in (reconstructed, made)]
        kinds = [-softplus(each) if self.faithful else softplus(-each) for each in logits]
        adversarial = torch.stack([kind.mean() for kind in kinds]).sum()
        loss = self.reconstruction_weight * error + adversarial
        return {"loss": loss, "reconstruction": error, "adversarial": adversarial}

    def encoder_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The encoder's loss for each value that is compared, and its KL, in nats for each image."""
        code, kl = self.encoded(batch.image)
        wanted = self.compared(batch.image)
        error, nats = mse_loss(self.compared(self.network.generator(code)), wanted), kl.mean()
        if self.faithful:
            loss = nats / self.network.latent_channels + FAITHFUL_ENCODER_WEIGHT * error
        else:
            loss = self.kl_weight * nats / wanted[0].numel() + error / 2
        return {"encoder_loss": loss, "kl": nats}

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The discriminator's loss, and its mean logits of real and made images."""
        with torch.no_grad():
            code, _ = self.encoded(batch.image)
            made = [self.network.generator(each) for each in (code, self.codes(len(code)))]
        real = self.network.discriminator(batch.image).float()
        fake = torch.cat([self.network.discriminator(images).float() for images in made])
        return {
            "discriminator_loss": softplus(-real).mean() + 2 * softplus(fake).mean(),
            "discriminator_of_real": real.mean(),
            "discriminator_of_made": fake.mean(),
        }
