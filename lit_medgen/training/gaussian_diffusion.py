"""`GaussianDiffusion`: what methods share whose denoiser learns to remove Gaussian noise, from images or from latents.

    x_t  = alpha_t x + sigma_t eps                              (Ho et al. 2020, eq. 4)
    loss = E w(t) |prediction - target|^2                       (Ho et al. 2020, eq. 14, whatever is predicted)
    sample   a sampler from x_1 ~ N(0, I), guided by eq. 6 of Ho & Salimans (2022)

A subclass says what noise is added to (`clean`, `clean_shape`) and what image that is (`imaged`). Times are continuous
in [t_min, 1] and spread evenly over a batch, rather than discrete ones drawn one by one.

Shapes: b images, c channels, *s their axes; d channels and *z axes of what noise is added to.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from lit_medgen.batch import Batch, Condition, TrainingData, sent
from lit_medgen.diffusion import (
    ClassifierFree,
    Denoiser,
    Denoises,
    OptimalTransport,
    ParametrisationName,
    Resynthesis,
    Sampler,
    TrainingTimes,
)
from lit_medgen.diffusion.denoisers import Watched
from lit_medgen.diffusion.gaussian import broadcast
from lit_medgen.diffusion.reconstruction import DETECTION_STEPS, errors_by_level, reconstructions
from lit_medgen.errors import InputError
from lit_medgen.seeds import SeededNoise
from lit_medgen.training.completion import GivenRegion
from lit_medgen.training.conditional import Conditional, Conditioning
from lit_medgen.training.latents import LatentStore
from lit_medgen.training.learning_rate import Constant
from lit_medgen.training.method import default_optimizer

NUM_SHOWN = 8
"""Images that a trajectory shows."""


class SourceDenoiser(Denoiser):
    """A denoiser whose network reads `condition.source` beside x_t, as further channels, where there is one."""

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The network's output, b d *z, from x_t: b d *z, joined with the source, b k *z, where there is one."""
        x_t = x_t if condition.source is None else torch.cat([x_t, condition.source.to(x_t.dtype)], dim=1)
        return super().predict(x_t, t, condition)


class GaussianDiffusion(Conditional):
    """A method that learns to remove Gaussian noise, and makes images out of noise alone.

    Args:
        denoiser: network, schedule and parametrisation; the network's `covariates` are what images can be made from.
            None: it comes with a frozen part, in `build`, by `take_denoiser`.
        parametrisation: the name of what the network predicts.
        sampler: integrates the reverse process.
        training_times: which times are trained on; None: all alike.
        coupling: pairs noise with images in training; None: at random.
        conditioning: how covariates are learned, and guide.
        optimizer: makes the optimizer from the trained parameters.
        learning_rate_schedule: factor of the optimizer's learning rate at each step; None: constant.
    """

    completes_regions = True
    fixed: tuple[str, ...] = ("parametrisation",)
    """Arguments that a trained network cannot be asked to change."""

    def __init__(
        self,
        denoiser: Denoiser | None,
        parametrisation: ParametrisationName | None,
        sampler: Sampler | None,
        training_times: TrainingTimes | None = None,
        coupling: OptimalTransport | None = None,
        conditioning: Conditioning | None = None,
        optimizer: OptimizerCallable = default_optimizer,
        learning_rate_schedule: Constant | None = None,
    ) -> None:
        covariates = getattr(denoiser.network, "covariates", None) if denoiser else None
        super().__init__(covariates, conditioning, optimizer, learning_rate_schedule)
        self.training_times, self.coupling = training_times, coupling
        if denoiser and parametrisation and sampler:
            self.take_denoiser(denoiser, parametrisation, sampler)
        if coupling:
            coupling.check(self.covariates.numbers, text=self.covariates.text_channels > 0)

    def take_denoiser(self, denoiser: Denoiser, parametrisation: ParametrisationName, sampler: Sampler) -> None:
        """Takes what it learns and samples with; ValueError if these do not fit each other."""
        if hasattr(denoiser.network, "num_classes") and "label_map" not in self.required:
            raise ValueError(
                f"model.init_args.network: {type(denoiser.network).__name__} reads a label map, of which "
                f"{type(self).__name__} gives none; take lit_medgen.methods.LSDM as the model, or "
                "lit_medgen.networks.UNet."
            )
        self.denoiser, self.parametrisation, self.sampler = denoiser, parametrisation, sampler
        self.sampler.check(denoiser.schedule)

    @abstractmethod
    def clean(self, batch: Batch) -> Tensor:
        """What noise is added to: the images of a batch, or latents of them, b d *z in float32."""

    @abstractmethod
    def clean_shape(self) -> tuple[int, ...]:
        """The shape d *z of what noise is added to, for one image."""

    @abstractmethod
    def imaged(self, x: Tensor) -> Tensor:
        """The images of what a denoiser gives, b d *z -> b c *size in [-1, 1]."""

    @abstractmethod
    def noised_of(self, images: Tensor) -> Tensor:
        """What noise is added to, of images, without randomness: b c *size -> b d *z, undone by `imaged`."""

    def read_latents_of(self, data: TrainingData, trainer: L.Trainer) -> LatentStore | None:
        """Has the data's batches hold latents instead of images, where noise is added to those; returns their store."""
        return None

    def networks_for_speed(self) -> list[nn.Module]:
        """The denoising network, which `trainer.speed` may compile."""
        denoiser = getattr(self, "denoiser", None)  # None before a frozen part brings it
        return [denoiser.network] if denoiser is not None else []

    def facts(self) -> dict[str, Any]:
        """What the network has learned to predict, and at which noise levels."""
        log_snr = self.denoiser.schedule.log_snr(torch.linspace(0.1, 0.9, 9, device=self.device)).cpu()
        return {name: getattr(self, name) for name in self.fixed} | {"log_snr": log_snr}

    def restore(self, facts: dict[str, Any]) -> None:
        """InputError if the network is asked for something else."""
        for name in self.fixed:
            if (asked := getattr(self, name)) != facts[name]:
                raise InputError(
                    f"model.init_args.{name} is {asked}, but this model was trained with {facts[name]}; leave it so."
                )
        if not torch.allclose(self.facts()["log_snr"], facts["log_snr"], rtol=1e-4):
            raise InputError("model.init_args.schedule: another than this model was trained with; leave it as it was.")

    # The loss.

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted error of the prediction, averaged over all values of what noise is added to."""
        condition = self.training_condition(batch.condition, len(batch.key))
        x, t, share, eps = self.draws(batch)
        error = self.denoiser.weighted_error(x, t, eps, condition)
        return {"loss": (broadcast(share, error) * error).mean()}

    def draws(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What noise is added to, b d *z, times b, the share of each in a mean, b, and the noise of each, b d *z."""
        x = self.clean(batch)
        t, share = self.times_and_shares(len(x), self.denoiser.schedule.t_min, self.training_times)
        return x, t, share, self.coupled(x, torch.randn_like(x), batch.condition)

    def coupled(self, x: Tensor, eps: Tensor, condition: Condition) -> Tensor:
        """The noise in the order of what it is added to, b d *z; validation leaves it as it was drawn."""
        if self.coupling is None or not self.training:
            return eps
        others = [name for name in self.covariates.names if name not in self.covariates.numbers]
        return self.coupling(x, eps, self.coupling.classes(condition, x, self.covariates.numbers, others))

    def prediction(self, batch: Batch, condition: Condition) -> tuple[Tensor, Tensor]:
        """What the network predicts at the loss's noise, b d *z, and the mean error in each image, b."""
        x, t, _, eps = self.draws(batch)
        x_t = self.denoiser.process.perturb(x, t, eps)
        predicted = self.denoiser.predict(x_t, t, condition).float()
        return predicted, self.denoiser.error(predicted, self.denoiser.target(x, x_t, t)).flatten(1).mean(1)

    # Sampling.

    @property
    def sampling_denoiser(self) -> Denoises:
        """The denoiser that the sampler calls, with classifier-free guidance where there is any."""
        return self.bounded(self.classifier_free(self.denoiser))

    def bounded(self, denoiser: Denoises) -> Denoises:
        """The denoiser within the range of what noise is added to, where that has one."""
        return denoiser

    def denoiser_for(self, condition: Condition) -> Denoises:
        """The denoiser that makes images from this condition, which is as it was asked for, not scaled."""
        return self.sampling_denoiser

    @torch.no_grad()
    def sample(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """b c *size in [-1, 1]; a region that the condition gives is kept (`training.completion`)."""
        denoiser = self.denoiser_for(condition)
        given = GivenRegion.of(condition, self.needed_spec(), self.device)
        if given is None:
            return self.imaged(self.walked(denoiser, condition, seeds))
        denoiser = given.known_to(denoiser, self.noised_of, self.clean_shape()[1:])
        return given.kept_in(self.imaged(self.walked(denoiser, condition, seeds)))

    def walked(self, denoiser: Denoises, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """What the sampler makes, b d *z."""
        noise = SeededNoise(seeds)
        start = sent(noise(self.clean_shape()), self.device)
        return self.sampler(denoiser, start, self.conditioned(condition.to(self.device), noise), noise.like)

    def conditioned(self, condition: Condition, noise: SeededNoise) -> Condition:
        """What the network is told of images that are asked for; `noise` is for what of that is random."""
        return self.scaled(condition)

    def why_no_surprise(self) -> str:
        """Images of which nothing else is known tell nothing of a method that makes them from parts they lack."""
        if not self.required:
            return super().why_no_surprise()
        return (
            f"makes images from {', '.join(self.required)}, which images of other sets do not have; take a model that "
            "needs nothing but noise"
        )

    @torch.no_grad()
    def surprise(self, images: Tensor, seeds: Sequence[int]) -> dict[str, Tensor]:
        """The mean squared error of each image's reconstructions from several noise levels, by log-SNR, b each.

        The sampler is that of samples, cut to `DETECTION_STEPS` steps; no covariate is known, and nothing guides.
        """
        x, noise, denoiser = self.noised_of(images), SeededNoise(seeds), self.bounded(self.denoiser)
        with self.in_few_steps(DETECTION_STEPS):
            made = reconstructions(self.sampler, denoiser, x, self.scaled(Condition()), noise.like)
            return errors_by_level((self.imaged(x_0) - images).square() for x_0 in made)

    @torch.no_grad()
    def counterparts(self, images: Tensor, condition: Condition, seeds: Sequence[int], how: Resynthesis) -> Tensor:
        """Images as the model would rather have them, b c *size in [-1, 1] (`diffusion.resynthesis`)."""
        asked = self.scaled(condition.to(self.device))
        null = asked.drop(torch.ones(len(images), dtype=torch.bool, device=self.device), self.kept)
        back: Denoises = self.denoiser
        if asked.parts - {*self.kept}:
            back = ClassifierFree(back, how.guidance, keep=self.kept)
        back = self.bounded(back) if how.noised else back
        x, noise = self.noised_of(sent(images, self.device)), SeededNoise(seeds)
        return self.imaged(how(x, self.denoiser, back, null, asked, noise.like))

    @torch.no_grad()
    def trajectory(self, condition: Condition, seed: int) -> Tensor:
        """n c *size in [-1, 1]: the images that the denoiser expects at steps of a sample, and the sample at last."""
        watched = Watched(self.denoiser_for(condition))
        last = self.walked(watched, condition, [seed])
        return torch.cat([self.imaged(x) for x in [*watched.some(NUM_SHOWN - 1), last]])
