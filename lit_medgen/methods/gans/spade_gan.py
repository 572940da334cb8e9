r"""SPADE GAN: images of label maps, by a generator whose normalisations the map modulates.

Park, Liu, Wang, Zhu. "Semantic Image Synthesis with Spatially-Adaptive Normalization". CVPR 2019; a baseline of latent
semantic diffusion (Zu 2023), with an encoder there.

    z ~ q(z|x) = N(mu(x), diag(sigma(x)^2)), at sampling N(0, I);   without an encoder there is no z
    generator:      -D(m, G(m, z)) + w sum |D_l(m, x) - D_l(m, G(m, z))| + w' perceptual distance + w'' KL(q | N(0, I))
    discriminator:  [relu(1 - D(m, x)) + relu(1 + D(m, G(m, z)))] / 2          (hinge: Lim & Ye 2017, section 2)

Means over the scales of the discriminator; l: all layers but the last. The encoder is trained with the generator.

What differs from the public code:

- The KL divergence is a sum over a code and a mean over images. The code sums over the batch too, so that its weight
  counts for more in larger batches; `faithful` does so.
- The generator normalises groups of channels, the code batches over all devices.
- The perceptual distance is of features of the training images, or of a file; the code's are VGG19's.

With `faithful` and the network's `pyramid: nearest` it is the code's model but for the last two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lit_medgen.batch import Batch, Condition, DataSpec, sent
from lit_medgen.errors import InputError
from lit_medgen.methods.gans.gan import GAN
from lit_medgen.networks.bottlenecks import DiagonalGaussian
from lit_medgen.networks.discriminator import hinge
from lit_medgen.networks.gans.spade import SemanticGAN
from lit_medgen.seeds import SeededNoise
from lit_medgen.training.adversarial import Player
from lit_medgen.training.feature_loss import FeatureLoss
from lit_medgen.training.generator import refuse_other_classes


class SPADEGAN(GAN, FeatureLoss):
    """A generator of images of label maps, against discriminators that see the map too.

    Args:
        network: generator, discriminators, and an encoder where there are codes.
        features: the network whose features the perceptual distance compares: `learned` from images of the training
            people, a TorchScript file, or `none`.
        feature_weight: w, of the distances of the discriminators' features.
        perceptual_weight: w'.
        perceptual_share: of volumes, the share of the slices of each of the three views, drawn anew in every step, that
            the perceptual distance compares.
        kl_weight: w'', of the KL divergence in nats per image.
        faithful: the KL divergence summed over the batch, as in the public code.
        others: see `GAN`.
    """

    required = ("label_map",)
    network: SemanticGAN

    def __init__(
        self,
        network: SemanticGAN,
        features: str = "learned",
        feature_weight: float = 10.0,
        perceptual_weight: float = 10.0,
        perceptual_share: float = 1.0,
        kl_weight: float = 0.05,
        faithful: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(network, **others)
        self.compare_features(features, perceptual_weight, perceptual_share)
        self.feature_weight, self.kl_weight, self.faithful = feature_weight, kl_weight, faithful

    def check_shape(self, shape: DataSpec) -> None:
        """InputError too for a network of another number of classes than the data's."""
        super().check_shape(shape)
        refuse_other_classes(self.network.num_classes, shape)

    def players(self) -> Sequence[Player]:
        """The generator with the encoder, and the discriminators; each once a batch."""
        return self.generator_player(), self.discriminator_player()

    @torch.no_grad()
    def sample(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """The image of a label map and, where there are codes, one of N(0, I) for each seed; b c *s."""
        num, label_map = self.network.latent_channels, sent(self._label_map(condition), self.device)
        code = sent(SeededNoise(seeds)((num,)), self.device) if num else None
        images: Tensor = self.network.generator(label_map, code)
        return images

    @staticmethod
    def _label_map(condition: Condition) -> Tensor:
        """The label map of a condition, b 1 *s; InputError without one."""
        if condition.label_map is None:
            raise InputError("SPADEGAN makes images from label maps: condition.label_map is missing.")
        return condition.label_map

    def latent(self, images: Tensor) -> DiagonalGaussian | None:
        """q(z|x) of images b c *s; None without an encoder."""
        encoder = self.network.encoder
        return None if encoder is None else DiagonalGaussian.of(encoder(images))

    def made(self, batch: Batch, latent: DiagonalGaussian | None) -> Tensor:
        """Images of a batch's label maps and its images' codes, sampled in training, else their means; b c *s."""
        code = None if latent is None else latent.sample() if self.training else latent.mean
        images: Tensor = self.network.generator(self._label_map(batch.condition), code)
        return images

    def judged(self, batch: Batch, made: Tensor) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        """What the discriminators see in real and in made images, layers of each scale; both pass at once."""
        label_map = self._label_map(batch.condition)
        both = self.network.features(torch.cat([label_map] * 2), torch.cat([batch.image, made]))
        halves = [[layer.float().chunk(2) for layer in layers] for layers in both]
        real, of_made = ([[half[i] for half in layers] for layers in halves] for i in range(2))
        return real, of_made

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The generator's and the encoder's, with its parts."""
        latent = self.latent(batch.image)
        made = self.made(batch, latent)
        real, of_made = self.judged(batch, made)
        scales = list(zip(real, of_made, strict=True))
        parts = {
            "adversarial": torch.stack([-layers[-1].mean() for layers in of_made]).mean(),
            "feature_matching": torch.stack([_apart(*layers) for layers in scales]).mean(),
        }
        parts |= self.perceptual_distance(made.float(), batch.image)
        if latent is not None:
            nats = latent.kl().flatten(1).sum(1)
            parts["kl"] = nats.sum() if self.faithful else nats.mean()
        weights = {
            "adversarial": 1.0,
            "feature_matching": self.feature_weight,
            "perceptual": self.perceptual_weight,
            "kl": self.kl_weight,
        }
        return {"loss": torch.stack([weights[name] * part for name, part in parts.items()]).sum()} | parts

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The discriminators', and their mean logits, of real and made images."""
        with torch.no_grad():
            made = self.made(batch, self.latent(batch.image))
        real, of_made = ([layers[-1] for layers in scales] for scales in self.judged(batch, made))
        losses = [hinge(one, other) for one, other in zip(real, of_made, strict=True)]
        return {
            "discriminator_loss": torch.stack(losses).mean(),
            "discriminator_of_real": torch.stack([logits.mean() for logits in real]).mean(),
            "discriminator_of_made": torch.stack([logits.mean() for logits in of_made]).mean(),
        }


def _apart(real: Sequence[Tensor], made: Sequence[Tensor]) -> Tensor:
    """The sum over layers, but the logits, of the mean absolute difference of features."""
    pairs = zip(real[:-1], made[:-1], strict=True)
    return torch.stack([functional.l1_loss(ours, theirs.detach()) for theirs, ours in pairs]).sum()
