r"""`AdversarialAutoencoder`: what VQGAN and the KL autoencoder share, which is all but their bottleneck.

    loss     = L_rec + the bottleneck's loss + lambda L_G
    L_rec    = |x - G(z)| + w perceptual distance + w' spectral distance
    L_G      = -E[D(G(z))]            D: E[relu(1 - D(x)) + relu(1 + D(G(z)))] / 2     (hinge, Lim & Ye 2017, section 2)
    or         E[(D(G(z)) - 1)^2]     D: E[(D(x) - 1)^2 + D(G(z))^2] / 2               (Mao et al. 2017, eq. 9)
    lambda   = c min(|grad L_rec| / (|grad L_G| + delta), most), at the last layer of G (Esser et al. 2021, eq. 7), or c

The discriminator starts after `discriminator_start` steps, at its full learning rate: lambda passes on the
gradient of a discriminator that has hardly learned as loudly as that of a good one, so a second
warm-up would do harm.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.distributed as dist
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional

from lit_medgen.batch import Batch, DataSpec, Score, TrainingData
from lit_medgen.errors import InputError
from lit_medgen.metrics import PairedMetric, PairedMSSSIM, PairedPSNR, PairedSSIM, frechet_distance
from lit_medgen.metrics.extractors import AllViews, extractors
from lit_medgen.metrics.known import blocks
from lit_medgen.metrics.paired import spectral_distance
from lit_medgen.networks.discriminator import PatchDiscriminator, diff_augment, hinge
from lit_medgen.networks.protocols import Discriminator, ImageAutoencoder, as_module
from lit_medgen.output import say
from lit_medgen.training.adversarial import Adversarial, Player
from lit_medgen.training.feature_loss import FeatureLoss
from lit_medgen.training.first_stage import FirstStage
from lit_medgen.training.fitting import refuse_other_channels
from lit_medgen.training.latents import encoded
from lit_medgen.training.learning_rate import Constant
from lit_medgen.training.method import default_optimizer

DELTA = 1e-4
MIN_FOR_FRECHET = 8
"""Fewest unseen images that a Fréchet distance is taken of: fewer have no covariance worth the name."""


@dataclass(frozen=True)
class Compressed:
    """What a bottleneck makes of the encoder's output.

    Attributes:
        latent: b d *z, which is decoded.
        kept: what a latent store keeps of it: codes b *z, or means and log-variances b 2d *z.
        loss: scalar, the bottleneck's part of the loss.
        logged: scalars that are logged, by name.
    """

    latent: Tensor
    kept: Tensor
    loss: Tensor
    logged: dict[str, Tensor]


class AdversarialAutoencoder(Adversarial, FeatureLoss, FirstStage):
    """Compresses images to latent maps, and decodes these to images that a discriminator takes for real.

    A subclass gives the bottleneck: `compress`, `kept`, `latents`, and what is measured of it over many images.

    Args:
        network: encoder and decoder: `Autoencoder`, or any module that encodes and decodes (see `ImageAutoencoder`).
        discriminator: tells real images from reconstructions; None: `PatchDiscriminator`.
        features: the network whose features perceptual and Fréchet distance compare: `learned` from images of the
            training people, a TorchScript file, or `none`.
        perceptual_weight: w.
        perceptual_share: of volumes, the share of the slices of each of the three views, drawn anew in every step, that
            the perceptual distance compares.
        spectral_weight: w', of the squared difference of Fourier amplitudes (Dhariwal et al. 2020, "Jukebox", 3.3).
        adversarial_loss: `hinge` or `least_squares`.
        discriminator_weight: c, the factor of lambda, or lambda itself.
        adaptive_weight: whether lambda balances the gradients of the last layer.
        max_discriminator_weight: upper bound of the ratio of gradients.
        discriminator_start: steps before the discriminator is trained and has a part in the loss.
        diff_augment: whether the discriminator sees real images and reconstructions through random augmentations.
        optimizer: makes the optimizer of encoder, bottleneck and decoder.
        discriminator_optimizer: makes the discriminator's optimizer.
        learning_rate_schedule: factor of the rate of encoder, bottleneck and decoder at each step.
        discriminator_learning_rate_schedule: factor of the discriminator's rate at each of its own steps, which begin
            at `discriminator_start`; None: constant.
        gradient_clip: largest norm of the gradient, of encoder, bottleneck and decoder together and of the
            discriminator; None: any.
    """

    def __init__(
        self,
        network: ImageAutoencoder,
        discriminator: Discriminator | None = None,
        features: str = "learned",
        perceptual_weight: float = 1.0,
        perceptual_share: float = 1.0,
        spectral_weight: float = 0.0,
        adversarial_loss: Literal["hinge", "least_squares"] = "hinge",
        discriminator_weight: float = 1.0,
        adaptive_weight: bool = True,
        max_discriminator_weight: float = 1.0,
        discriminator_start: int = 30_000,
        diff_augment: bool = False,
        optimizer: OptimizerCallable = default_optimizer,
        discriminator_optimizer: OptimizerCallable = default_optimizer,
        learning_rate_schedule: Constant | None = None,
        discriminator_learning_rate_schedule: Constant | None = None,
        gradient_clip: float | None = None,
    ) -> None:
        as_module(network)
        discriminator = discriminator or PatchDiscriminator(network.dim, getattr(network, "in_channels", 1))
        super().__init__(optimizer, learning_rate_schedule)
        self.network, self.discriminator = network, as_module(discriminator)
        self.make_discriminator_optimizer, self.gradient_clip = discriminator_optimizer, gradient_clip
        self.discriminator_learning_rate_schedule = discriminator_learning_rate_schedule or Constant()
        self.compare_features(features, perceptual_weight, perceptual_share)
        self.spectral_weight, self.adversarial_loss = spectral_weight, adversarial_loss
        self.discriminator_weight, self.max_discriminator_weight = discriminator_weight, max_discriminator_weight
        self.adaptive_weight = adaptive_weight
        self.discriminator_start, self.diff_augment = discriminator_start, diff_augment
        self._measures: dict[str, PairedMetric] = {}
        self._views: AllViews | None = None
        self._features: list[tuple[Tensor, Tensor]] = []
        self._sums: Tensor | None = None

    # What the bottleneck gives.

    bottleneck_scores: dict[str, str]
    """Name of each score of the bottleneck -> what it is of, in words, with its unit."""

    @abstractmethod
    def compress(self, features: Tensor) -> Compressed:
        """Sends the encoder's output through the bottleneck, as training does."""

    @abstractmethod
    def sums(self, kept: Tensor) -> Tensor:
        """What the bottleneck's scores are computed from, added up over images of which this was kept."""

    @abstractmethod
    def scores_of_sums(self, sums: Tensor) -> dict[str, Tensor]:
        """The bottleneck's scores by name, over all images whose sums were added up."""

    # Images to latents and back.

    @property
    def divisor(self) -> int:
        """Voxels along each axis of an image for one voxel of the latent map."""
        return self.network.divisor

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """d, *z: channels and size of the latent map of an image of the training data's size."""
        return (self.network.latent_channels, *(side // self.divisor for side in self.needed_spec().size))

    def encode(self, images: Tensor) -> Tensor:
        """The latents of images, b c *s -> b d *z: embedded codes, or means."""
        return self.latents(self.kept(images))

    def decode(self, latents: Tensor) -> Tensor:
        """Images of latent maps, b d *z -> b c *s in [-1, 1]."""
        return self.network.decode(latents).clamp(-1, 1)

    def as_frozen_part(self) -> Self:
        """Itself without the discriminator."""
        del self.discriminator
        return self

    # Training.

    def players(self) -> tuple[Player, Player]:
        """Encoder, bottleneck and decoder; then the discriminator, which samples are not made with."""
        clip = self.gradient_clip
        generator = Player(
            "generator", self.loss, None, self.make_optimizer, self.learning_rate_schedule, gradient_clip=clip
        )
        discriminator = Player(
            "discriminator",
            self.discriminator_loss,
            [self.discriminator],
            self.make_discriminator_optimizer,
            self.discriminator_learning_rate_schedule,
            start=self.discriminator_start,
            gradient_clip=clip,
            averaged=False,
        )
        return generator, discriminator

    def networks_for_speed(self) -> list[nn.Module]:
        """The encoder and the decoder, where the network has such parts, and the discriminator, where there is one."""
        parts = [getattr(self.network, name, None) for name in ("encoder", "decoder")]
        return [part for part in [*parts, getattr(self, "discriminator", None)] if isinstance(part, nn.Module)]

    def check_shape(self, shape: DataSpec) -> None:
        """InputError if the images do not fit the network."""
        if len(shape.size) != self.network.dim or any(side % self.divisor for side in shape.size) or shape.slice_axis:
            raise InputError(
                f"data.init_args: the images are {' x '.join(map(str, shape.size))}; the network has dim "
                f"{self.network.dim} and {self.divisor.bit_length()} levels, so they must have as many axes, each a "
                f"multiple of {self.divisor}. Set preprocessing.size, and view to data_modules.OneSlice for dim 2."
            )
        for key, network in (("network", self.network), ("discriminator", getattr(self, "discriminator", None))):
            refuse_other_channels(f"{key}.init_args.in_channels", getattr(network, "in_channels", None), shape)

    def setup(self, stage: str) -> None:
        """Learns or loads the features that distances compare, before the first step, and says which."""
        super().setup(stage)
        if stage not in ("fit", "validate", "test"):
            return
        self._measures = {"psnr": PairedPSNR(), "ssim": PairedSSIM(), "ms_ssim": PairedMSSSIM()}
        names = [*(distance.features for distance in self._perceptual), *([self._views.name] if self._views else [])]
        say(f"features of perceptual and Fréchet distance: {'; '.join(names) or 'none'}")

    def take_features(self) -> None:
        """Learns or loads those of the Fréchet distance too."""
        super().take_features()
        num_unseen = len(self.data.images("val", one_per_person=True))
        if num_unseen >= MIN_FOR_FRECHET:
            found = extractors(self.features, self.seen_images(), num_unseen, self.data.cache / "features")
            self._views = AllViews(tuple(found.values()))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """L_rec and the bottleneck's loss, and in training lambda L_G once the discriminator has started."""
        through = self.compress(self.network.encode(batch.image))
        output = self.network.decode(through.latent).float()
        self.output, self.output_kept = output, through.kept.detach()
        reconstruction, parts = self._reconstruction(output, batch.image)
        logged, loss = parts | through.logged, reconstruction + through.loss
        if self.training and self._step >= self.discriminator_start:
            adversarial = self._adversarial(self.discriminator(self._augmented(output)).float())
            weight = self._discriminator_weight(reconstruction, adversarial)
            loss = loss + weight * adversarial
            logged |= {"adversarial": adversarial, "discriminator_weight": weight}
        return {"loss": loss} | logged

    def _reconstruction(self, output: Tensor, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L_rec, and its parts by name."""
        parts = {"l1": functional.l1_loss(output, image)}
        parts |= self.perceptual_distance(output, image)
        if self.spectral_weight:
            parts["spectral"] = spectral_distance(output, image)
        weights = {"l1": 1.0, "perceptual": self.perceptual_weight, "spectral": self.spectral_weight}
        return torch.stack([weights[name] * part for name, part in parts.items()]).sum(), parts

    def _adversarial(self, logits: Tensor) -> Tensor:
        """L_G from the discriminator's logits of reconstructions."""
        return -logits.mean() if self.adversarial_loss == "hinge" else (logits - 1).square().mean()

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The discriminator's loss, hinge or least squares, and its mean logits, of real and made images."""
        real = self.discriminator(self._augmented(batch.image)).float()
        fake = self.discriminator(self._augmented(self.output.detach())).float()
        if self.adversarial_loss == "hinge":
            loss = hinge(real, fake)
        else:
            loss = ((real - 1).square().mean() + fake.square().mean()) / 2
        return {"discriminator_loss": loss, "discriminator_of_real": real.mean(), "discriminator_of_made": fake.mean()}

    def _discriminator_weight(self, reconstruction: Tensor, adversarial: Tensor) -> Tensor:
        """lambda: fixed, or the ratio of two gradient norms (Esser et al. 2021, eq. 7)."""
        if not self.adaptive_weight:
            return torch.full((), self.discriminator_weight, device=self.device)
        ours, theirs = (
            torch.autograd.grad(loss, self.network.last_layer, retain_graph=True)[0].float().norm()
            for loss in (reconstruction, adversarial)
        )
        return self.discriminator_weight * (ours / (theirs + DELTA)).clamp(0, self.max_discriminator_weight).detach()

    def _augmented(self, images: Tensor) -> Tensor:
        if not self.diff_augment:
            return images
        return diff_augment(images, torch.rand(len(images), 2 + self.network.dim, device=images.device))

    # Validation: scores of the reconstructions of unseen people, and of the bottleneck.

    def on_validation_epoch_start(self) -> None:
        """Clears the scores of the last validation."""
        self._sums, self._features = None, []
        for measure in self._measures.values():
            measure.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The loss without the discriminator; scores and features of the reconstructions stay on this process."""
        super().validation_step(batch, batch_idx)
        sums = self.sums(self.output_kept)
        self._sums = sums if self._sums is None else self._sums + sums
        outputs = self.output.clamp(-1, 1)
        with torch.autocast(self.device.type, enabled=False):  # bf16 would move the features
            for measure in self._measures.values():
                measure.update(outputs, batch.image)
            if self._views:
                self._features.append((self._views(outputs).double(), self._views(batch.image).double()))

    def on_validation_epoch_end(self) -> None:
        """Logs the scores over the images of all processes, which exchange scores and features but no images."""
        values = {name: _joined(measure.found) for name, measure in self._measures.items()}
        for i, name in enumerate(("outputs", "targets") if self._views else ()):
            values[name] = _joined([pair[i] for pair in self._features])
        shares: list[Any] = [(None if self._sums is None else self._sums.cpu(), values)]
        if self.trainer.world_size > 1:
            shares *= self.trainer.world_size
            dist.all_gather_object(shares, shares[0])
        self._sums = torch.stack([sums for sums, _ in shares if sums is not None]).sum(0)
        every = {name: torch.cat([part for _, theirs in shares for part in theirs[name]]) for name in values}
        scores = self.scores_of_sums(self._sums)
        if self._views:
            scores["frechet"] = frechet_distance(every.pop("outputs"), every.pop("targets")).float()
        scores |= {name: of_images.mean().float() for name, of_images in every.items()}
        self.log_dict({f"val/{name}": score for name, score in scores.items()})  # the same on every process

    @torch.no_grad()
    def scores(self, data: TrainingData) -> dict[str, Score]:
        """The bottleneck's scores over the test images; scores of pairs say how good the reconstructions are."""
        images = data.images("test")
        if not len(images):
            return {}
        sums = torch.stack([self.sums(encoded(self, some)).cpu() for some in blocks(images)]).sum(0)
        return {
            name: Score(float(score), f"{self.bottleneck_scores[_without_number(name)]}; test images", num=len(images))
            for name, score in self.scores_of_sums(sums).items()
        }


def _without_number(name: str) -> str:
    """The name of a score without the number of a channel at its end."""
    return name.rstrip("0123456789").rstrip("_")


def _joined(parts: list[Tensor]) -> list[Tensor]:
    """The parts as a list of one tensor on the CPU, or an empty list on a process without validation images."""
    return [torch.cat(parts).cpu()] if parts else []
