r"""VQGAN: images as maps of discrete codes, learned against a discriminator.

Esser, Rombach, Ommer. "Taming Transformers for High-Resolution Image Synthesis". CVPR 2021; as the first stage of
Bond-Taylor et al. "Unleashing Transformers" (ECCV 2022) and of "Discrete VQ-IHDM: MRI Generation with Vector Quantized
Inverse Heat Dissipation Model" (anonymous, under review).

    loss     = L_rec + |sg[E(x)] - z_q|^2 + beta |sg[z_q] - E(x)|^2 + lambda L_G     (Discrete VQ-IHDM, eq. 4, and L_G)
    L_rec    = |x - G(z_q)| + w perceptual distance + w' spectral distance
    L_G      = -E[D(G(z_q))]                      D: hinge loss                        (Lim & Ye 2017, section 2)
    lambda   = |grad L_rec| / (|grad L_G| + delta), both at the last layer of G        (Esser et al., eq. 7)

The discriminator starts after `discriminator_start` steps, at its full learning rate: lambda passes on the
gradient of a discriminator that has hardly learned as loudly as that of a good one, so a second
warm-up would do harm. Where eq. 4 and the code it comes from differ: `lit_medgen.networks.quantizer`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional

from lit_medgen.batch import Batch, DataSpec
from lit_medgen.errors import InputError
from lit_medgen.images.plots import save_usage
from lit_medgen.metrics import PairedMetric, PairedMSSSIM, PairedPSNR, PerceptualDistance, frechet_distance
from lit_medgen.metrics.extractors import AllViews, extractors, perceptual
from lit_medgen.metrics.paired import spectral_distance
from lit_medgen.networks.discriminator import PatchDiscriminator, diff_augment
from lit_medgen.networks.protocols import Discriminator, ImageAutoencoder, as_module
from lit_medgen.networks.quantizer import NearestNeighbour, Quantized, Quantizer, perplexity, usage
from lit_medgen.output import say
from lit_medgen.training.adversarial import Adversarial, Player
from lit_medgen.training.first_stage import FirstStage
from lit_medgen.training.learning_rate import Constant
from lit_medgen.training.method import default_optimizer

DELTA = 1e-4
MIN_FOR_FRECHET = 8
"""Fewest unseen images that a Fréchet distance is taken of: fewer have no covariance worth the name."""
MAX_PEOPLE = 500
"""Most training people that features are learned from."""


class VQGAN(Adversarial, FirstStage):
    """Compresses images to maps of discrete codes, and decodes these to images that a discriminator takes for real.

    Args:
        network: encoder and decoder: `Autoencoder`, or any module that encodes and decodes (see `ImageAutoencoder`).
        quantizer: turns a latent map into codes; None: `NearestNeighbour` with as many channels as the latent map.
        discriminator: tells real images from reconstructions; None: `PatchDiscriminator`.
        features: the network whose features perceptual and Fréchet distance compare: `learned` from images of the
            training people, a TorchScript file, or `none`.
        perceptual_weight: w.
        spectral_weight: w', of the squared difference of Fourier amplitudes (Dhariwal et al. 2020, "Jukebox", 3.3).
        discriminator_weight: factor of lambda.
        max_discriminator_weight: upper bound of lambda.
        discriminator_start: steps before the discriminator is trained and has a part in the loss.
        diff_augment: whether the discriminator sees real images and reconstructions through random augmentations.
        optimizer: makes the optimizer of encoder, codebook and decoder.
        discriminator_optimizer: makes the discriminator's optimizer.
        learning_rate_schedule: factor of the rate of encoder, codebook and decoder at each step.
        discriminator_learning_rate_schedule: factor of the discriminator's rate at each of its own steps, which begin
            at `discriminator_start`; None: constant.
        gradient_clip: largest norm of the gradient, of encoder, codebook and decoder together and of the discriminator;
            None: any.
    """

    def __init__(
        self,
        network: ImageAutoencoder,
        quantizer: Quantizer | None = None,
        discriminator: Discriminator | None = None,
        features: str = "learned",
        perceptual_weight: float = 1.0,
        spectral_weight: float = 0.0,
        discriminator_weight: float = 1.0,
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
        discriminator = discriminator or PatchDiscriminator(network.dim)
        super().__init__(optimizer, learning_rate_schedule)
        self.network, self.discriminator = network, as_module(discriminator)
        self.make_discriminator_optimizer, self.gradient_clip = discriminator_optimizer, gradient_clip
        self.discriminator_learning_rate_schedule = discriminator_learning_rate_schedule or Constant()
        self.quantizer = quantizer or NearestNeighbour(channels=network.latent_channels)
        if self.quantizer.channels != network.latent_channels:
            raise ValueError(
                f"model.init_args.network.init_args.latent_channels is {network.latent_channels}, but the quantizer "
                f"has {self.quantizer.channels} channels; give the same."
            )
        self.features, self.perceptual_weight, self.spectral_weight = features, perceptual_weight, spectral_weight
        self.discriminator_weight, self.max_discriminator_weight = discriminator_weight, max_discriminator_weight
        self.discriminator_start, self.diff_augment = discriminator_start, diff_augment
        self._perceptual: list[PerceptualDistance] = []  # in a list, so that its network is no part of this one
        self._measures: dict[str, PairedMetric] = {}
        self._views: AllViews | None = None
        self._features: list[tuple[Tensor, Tensor]] = []
        self.code_counts = torch.zeros(self.quantizer.num_codes)
        """k, how often each code was used in the last validation."""

    # Images to codes and back.

    @property
    def divisor(self) -> int:
        """Voxels along each axis of an image for one voxel of the latent map."""
        return self.network.divisor

    def codes(self, images: Tensor) -> Tensor:
        """The codes of images, b c *s -> b *z, int64."""
        return self.quantizer.codes(self.network.encode(images))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """d, *z: channels and size of the latent map of an image of the training data's size."""
        return (self.quantizer.channels, *(side // self.divisor for side in self.needed_spec().size))

    def encode(self, images: Tensor) -> Tensor:
        """The embedded codes of images, b c *s -> b d *z."""
        return self.latents(self.kept(images))

    def kept(self, images: Tensor) -> Tensor:
        """The codes of images, b c *s -> b *z, int32."""
        return self.codes(images).int()

    def latents(self, kept: Tensor, sample: bool = False) -> Tensor:
        """The embedded codes, b *z -> b d *z; there is nothing to sample."""
        return self.quantizer.embed(kept.long())

    def decode(self, latents: Tensor) -> Tensor:
        """Images of latent maps, b d *z -> b c *s in [-1, 1]."""
        return self.network.decode(latents).clamp(-1, 1)

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Images of codes, b *z -> b c *s in [-1, 1]."""
        return self.decode(self.quantizer.embed(codes))

    def as_frozen_part(self) -> Self:
        """Itself without the discriminator."""
        del self.discriminator
        return self

    # Training.

    def players(self) -> tuple[Player, Player]:
        """Encoder, codebook and decoder; then the discriminator, which samples are not made with."""
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

    def setup(self, stage: str) -> None:
        """Learns or loads the features that distances compare, before the first step."""
        super().setup(stage)
        if stage not in ("fit", "validate", "test"):
            return
        self._measures = {"psnr": PairedPSNR(), "ms_ssim": PairedMSSSIM()}
        if self.features != "none":
            for first in (True, False):  # the first process of each machine learns them, the others read what it kept
                if first == (self.trainer.local_rank == 0):
                    self._take_features()
                self.trainer.strategy.barrier("features")
        names = [*(distance.features for distance in self._perceptual), *([self._views.name] if self._views else [])]
        say(f"features of perceptual and Fréchet distance: {'; '.join(names) or 'none'}")

    def _take_features(self) -> None:
        """Learns the features from images of the training people, or loads them."""
        data, num_unseen = self.data, len(self.data.images("val", one_per_person=True))
        train, cache = data.images("train", one_per_person=True, limit=MAX_PEOPLE).all(), data.cache / "features"
        if num_unseen >= MIN_FOR_FRECHET:
            self._views = AllViews(tuple(extractors(self.features, train, num_unseen, cache).values()))
        if self.perceptual_weight:
            self._perceptual = [perceptual(self.features, train, cache).requires_grad_(False)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Eq. 4, and in training lambda L_G once the discriminator has started."""
        quantized: Quantized = self.quantizer(self.network.encode(batch.image))
        output = self.network.decode(quantized.latent).float()
        self.output, self.output_codes = output, quantized.codes
        parts = {"l1": functional.l1_loss(output, batch.image)}
        for distance in self._perceptual:
            parts["perceptual"] = distance.to(self.device).distance(output, batch.image).mean()
        if self.spectral_weight:
            parts["spectral"] = spectral_distance(output, batch.image)
        weights = {"l1": 1.0, "perceptual": self.perceptual_weight, "spectral": self.spectral_weight}
        reconstruction = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        logged = parts | {"codebook": quantized.loss}
        if self.training:
            logged["perplexity"] = perplexity(usage(quantized.codes, self.quantizer.num_codes))
        loss = reconstruction + quantized.loss
        if self.training and self._step >= self.discriminator_start:
            adversarial = -self.discriminator(self._augmented(output)).float().mean()
            weight = self._discriminator_weight(reconstruction, adversarial)
            loss = loss + weight * adversarial
            logged |= {"adversarial": adversarial, "discriminator_weight": weight}
        return {"loss": loss} | logged

    def discriminator_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Hinge loss of the discriminator (Lim & Ye 2017, section 2), and its mean logits, of real and made images."""
        real = self.discriminator(self._augmented(batch.image)).float()
        fake = self.discriminator(self._augmented(self.output.detach())).float()
        loss = (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()) / 2
        return {"discriminator_loss": loss, "discriminator_of_real": real.mean(), "discriminator_of_made": fake.mean()}

    def _discriminator_weight(self, reconstruction: Tensor, adversarial: Tensor) -> Tensor:
        """Adaptive weight of the adversarial loss (Esser et al. 2021, eq. 7): the ratio of two gradient norms."""
        ours, theirs = (
            torch.autograd.grad(loss, self.network.last_layer, retain_graph=True)[0].float().norm()
            for loss in (reconstruction, adversarial)
        )
        return self.discriminator_weight * (ours / (theirs + DELTA)).clamp(0, self.max_discriminator_weight).detach()

    def _augmented(self, images: Tensor) -> Tensor:
        if not self.diff_augment:
            return images
        return diff_augment(images, torch.rand(len(images), 2 + self.network.dim, device=images.device))

    # Validation: scores of the reconstructions of unseen people.

    def plots(self) -> dict[str, Callable[[Path], None]]:
        """How often each code is used for the validation images."""
        if not self.code_counts.any():
            return {}
        counts = self.code_counts.numpy()
        return {"code_usage": lambda path: save_usage(path, counts)}

    def on_validation_epoch_start(self) -> None:
        """Clears the code counts and the scores of the last validation."""
        self.code_counts = torch.zeros(self.quantizer.num_codes, device=self.device)
        self._features = []
        for measure in self._measures.values():
            measure.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The loss without the discriminator; scores and features of the reconstructions stay on this process."""
        super().validation_step(batch, batch_idx)
        self.code_counts += usage(self.output_codes, self.quantizer.num_codes)
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
        shares: list[Any] = [(self.code_counts.cpu(), values)]
        if self.trainer.world_size > 1:
            shares *= self.trainer.world_size
            dist.all_gather_object(shares, shares[0])
        self.code_counts = torch.stack([counts for counts, _ in shares]).sum(0)
        every = {name: torch.cat([part for _, theirs in shares for part in theirs[name]]) for name in values}
        scores = {"code_usage": (self.code_counts > 0).float().mean(), "perplexity": perplexity(self.code_counts)}
        if self._views:
            scores["frechet"] = frechet_distance(every.pop("outputs"), every.pop("targets")).float()
        scores |= {name: of_images.mean().float() for name, of_images in every.items()}
        self.log_dict({f"val/{name}": score for name, score in scores.items()})  # the same on every process


def _joined(parts: list[Tensor]) -> list[Tensor]:
    """The parts as a list of one tensor on the CPU, or an empty list on a process without validation images."""
    return [torch.cat(parts).cpu()] if parts else []
