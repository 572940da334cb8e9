r"""VDM: variational diffusion, whose loss is a bound of the likelihood, with a noise schedule that is learned.

Rguibi et al. "Improving Medical Imaging with Medical Variation Diffusion Model" (2023), in pixels or in the latents of
an encoder and a decoder that are trained with it; after Kingma et al., "Variational Diffusion Models" (NeurIPS 2021).

    z    = f(x), the image itself or what an encoder makes of it;      z_t = alpha_t z + sigma_t eps
    loss = -log p(x | z_0) + KL(q(z_1 | x) || N(0, I)) + 1/2 E[gamma'(t) |eps - epŝ_theta(z_t)|^2]
                                           Kingma et al., eq. 11 and 17, in bits per dimension; with T steps, eq. 14
    sample   z_0 by a sampler from z_1 ~ N(0, I), x the mean of p(x | z_0)

What differs from the paper:

- Equation 1 of the paper is no bound of a variational diffusion model, and its section 2 trains a sum of squared error,
  KL divergence and gradient difference where figure 4 shows the terms above. Here the loss is the bound; a gradient
  difference can be added, and is then logged by itself.
- gamma from 0.1 to 1 (section 2) leaves a signal-to-noise ratio of 0.37 at t = 1, where samples start from pure noise.
  The range here is Kingma et al.'s; the ends can be learned.
- The network is told gamma's share of its range rather than the time, so that a learned schedule changes nothing else.
- Grey values have probabilities, not pixels that are coins, unless `Bernoulli` is asked for.

Shapes: b images, c channels, *s their axes; d latent channels, *z the axes of the latent (none of a vector).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from lit_medgen.batch import Batch, Condition, DataSpec, sent
from lit_medgen.diffusion import (
    Ancestral,
    Bernoulli,
    Denoiser,
    Denoises,
    DiscretisedLogistic,
    GammaSchedule,
    Likelihood,
    LinearGamma,
    NoiseAt,
    NoiseLike,
    Sampler,
    bits_per_dimension,
    diffusion_term,
    latent_at_start,
    prior_term,
)
from lit_medgen.diffusion.denoisers import Watched
from lit_medgen.diffusion.learned_schedules import Level
from lit_medgen.errors import InputError
from lit_medgen.methods.vdm.bound_record import BoundRecord
from lit_medgen.methods.vdm.bounded import NUM_SHOWN, Bounded
from lit_medgen.methods.vdm.fitting import described, refuse_other_values
from lit_medgen.networks.protocols import ImageAutoencoder, LatentNetwork, as_module
from lit_medgen.networks.score_resnet import FourierFeatures, LevelNetwork
from lit_medgen.seeds import SeededNoise
from lit_medgen.training.completion import GivenRegion
from lit_medgen.training.conditional import Conditioning
from lit_medgen.training.fitting import refuse_unfit
from lit_medgen.training.learning_rate import Constant
from lit_medgen.training.method import default_optimizer


class VDM(Bounded):
    """Variational diffusion (Rguibi et al. 2023; Kingma et al. 2021).

    Args:
        network: `ScoreResNet`, `UNet` or another network called as network(z_t, level, condition), which tells the
            noise in z_t; its `covariates` are what images can be made from.
        autoencoder: encoder and decoder, `Autoencoder` or `DenseAutoencoder`, trained together with the rest; None: the
            latent is the image.
        likelihood: log p(x | z_0); None: `DiscretisedLogistic`, with the noise of z_0 as its scale, or a learned one
            where there is an autoencoder.
        schedule: `LinearGamma` or `MonotoneGamma`; None: `LinearGamma`, fixed.
        bound_steps: T of the bound that is trained; None: continuous time.
        times_each: times and noises that the bound of each test image is a mean over, in `evaluate`.
        gradient_difference: weight of the mean absolute difference between the gradients of image and reconstruction.
        sampler: integrates the reverse process; None: 250 steps of `Ancestral`, evenly spread in gamma.
        conditioning: how covariates are learned, and guide.
        optimizer: makes the optimizer from the trained parameters.
        learning_rate_schedule: factor of the optimizer's learning rate at each step; None: constant.
    """

    completes_regions = True

    def __init__(
        self,
        network: LatentNetwork,
        autoencoder: ImageAutoencoder | None = None,
        likelihood: Likelihood | None = None,
        schedule: GammaSchedule | None = None,
        bound_steps: int | None = None,
        times_each: int = 32,
        gradient_difference: float = 0.0,
        sampler: Sampler | None = None,
        conditioning: Conditioning | None = None,
        optimizer: OptimizerCallable = default_optimizer,
        learning_rate_schedule: Constant | None = None,
    ) -> None:
        super().__init__(getattr(network, "covariates", None), conditioning, optimizer, learning_rate_schedule)
        self.schedule = schedule or LinearGamma()
        level_network = LevelNetwork(as_module(network), Level(self.schedule))
        self.denoiser = Denoiser(level_network, self.schedule, "eps")
        self.autoencoder = None if autoencoder is None else as_module(autoencoder)
        self.likelihood = likelihood or DiscretisedLogistic(scale="learned" if autoencoder else None)
        if autoencoder and getattr(self.likelihood, "scale", 1.0) is None:
            raise ValueError(
                "model.init_args.likelihood.init_args.scale is null, the noise of z_0 in pixels, but with an "
                "autoencoder z_0 is no image; give 'learned', or a number."
            )
        if not autoencoder and isinstance(self.likelihood, Bernoulli):
            raise ValueError(
                "model.init_args.likelihood is Bernoulli, whose locations are logits that a decoder gives; in pixels "
                "give DiscretisedLogistic or Gaussian."
            )
        if bound_steps is not None and bound_steps < 1:
            raise ValueError(
                f"model.init_args.bound_steps is {bound_steps}; give at least 1, or null for continuous time."
            )
        if times_each < 1:
            raise ValueError(f"model.init_args.times_each is {times_each}; give at least 1.")
        if not 0 <= gradient_difference < math.inf:
            raise ValueError(f"model.init_args.gradient_difference is {gradient_difference}; give 0 or more.")
        self.bound_steps, self.times_each, self.gradient_difference = bound_steps, times_each, gradient_difference
        self.sampler: Sampler = sampler or Ancestral(250, spacing="log_snr")
        self.sampler.check(self.schedule)
        self.noted = BoundRecord()

    def networks_for_speed(self) -> list[nn.Module]:
        """The network that sees noise, which `trainer.speed` may compile."""
        return [self.level_network.network]

    @property
    def level_network(self) -> LevelNetwork:
        """The network that sees noise, and which level a time has."""
        return cast(LevelNetwork, self.denoiser.network)

    def before_data(self, shape: DataSpec, resumed_from: Path | None) -> None:
        """InputError too for a bound of T steps that would train what lies between the ends of a schedule."""
        if self.bound_steps is not None and self.schedule.learns_interior():
            raise InputError(
                f"model.init_args.bound_steps is {self.bound_steps}, but {type(self.schedule).__name__} is trained for "
                "continuous time; leave it out, or give LinearGamma. `evaluate` takes any."
            )
        super().before_data(shape, resumed_from)

    def check_shape(self, shape: DataSpec) -> None:
        """InputError if images do not fit the autoencoder or the network, or latents the network."""
        if self.autoencoder is not None:
            refuse_unfit("autoencoder", self.autoencoder, shape.channels, shape.size, "images")
        channels, *size = self.latent_shape(shape)
        of = "images" if self.autoencoder is None else "the autoencoder's latents"
        network = self.level_network.network
        key = "network.init_args.network" if isinstance(network, FourierFeatures) else "network"
        refuse_unfit(key, network, channels, size, of)

    def on_fit_start(self) -> None:
        """InputError if the likelihood knows other grey values than images have."""
        super().on_fit_start()
        refuse_other_values(self.likelihood, self.data.images("train").read([0]))

    def facts(self) -> dict[str, Any]:
        """What the network has learned noise of and how it is measured; what the run notes of its bound."""
        fixed = None if isinstance(self.schedule.ends, nn.Parameter) else self.schedule.ends.detach().cpu()
        return {
            "schedule": type(self.schedule).__name__,
            "ends": fixed,
            "likelihood": described(self.likelihood),
            "bound": self.noted.state(),
        }

    def restore(self, facts: dict[str, Any]) -> None:
        """InputError if another schedule or likelihood is asked for; takes back what the run has noted."""
        own, trained = self.facts(), "this model was trained with"
        for name in ("schedule", "likelihood"):
            if own[name] != facts[name]:
                raise InputError(f"model.init_args.{name}: {own[name]}, but {trained} {facts[name]}; leave it so.")
        if (own["ends"] is None) != (facts["ends"] is None):
            raise InputError(f"model.init_args.schedule.init_args.learned_ends: another than {trained}; leave it so.")
        if own["ends"] is not None and not torch.allclose(own["ends"], facts["ends"]):
            raise InputError(
                f"model.init_args.schedule.init_args: gamma_min and gamma_max other than {trained}; leave them so."
            )
        self.noted.take(facts["bound"])

    # The bound.

    def encode(self, images: Tensor) -> Tensor:
        """z of images, b c *s -> b d *z."""
        return images if self.autoencoder is None else cast(ImageAutoencoder, self.autoencoder).encode(images)

    def located(self, z: Tensor) -> Tensor:
        """Where p(x | z_0) lies, b c *s, from z_0 / alpha_0, b d *z."""
        return z if self.autoencoder is None else cast(ImageAutoencoder, self.autoencoder).decode(z)

    def bound(
        self,
        images: Tensor,
        condition: Condition,
        t: Tensor,
        share: Tensor,
        noise_like: NoiseLike = torch.randn_like,
    ) -> dict[str, Tensor]:
        """The terms of each image's bound at one time each, by name, in bits per dimension, b; their sum is the bound.

        And `location`, b c *s, where p(x | z_0) lies. `noise_like` supplies the noise of z_t and of z_0.
        """
        z = self.encode(images)
        eps, eps_0 = noise_like(z), noise_like(z)

        def predict(z_t: Tensor, level: Tensor) -> Tensor:
            return self.level_network.network(z_t, level.float(), condition)

        z_0, noise = latent_at_start(self.schedule, z, eps_0)
        location = self.located(z_0)
        nats = {
            "reconstruction": -self.likelihood(images, location, noise),
            "diffusion": share * diffusion_term(predict, self.schedule, z, t, eps, self.bound_steps),
            "prior": prior_term(self.schedule, z),
        }
        num = images[0].numel()
        return {name: bits_per_dimension(value, num).float() for name, value in nats.items()} | {"location": location}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The bound in bits per dimension, and each of its terms; with `gradient_difference` that too."""
        condition = self.training_condition(batch.condition, len(batch.key))
        terms = self.bound(batch.image, condition, *self.times_and_shares(len(batch.key), 0.0))
        location = terms.pop("location")
        losses = {name: value.mean() for name, value in terms.items()}
        losses["bits_per_dimension"] = torch.stack(list(losses.values())).sum()
        losses["loss"] = losses["bits_per_dimension"]
        if self.gradient_difference:
            losses["gradient_difference"] = gradient_difference(batch.image, self.likelihood.image(location))
            losses["loss"] = losses["loss"] + self.gradient_difference * losses["gradient_difference"]
        return losses

    def prediction(self, batch: Batch, condition: Condition) -> tuple[Tensor, Tensor]:
        """The noise that the network sees in the loss's latents, b d *z, and its mean squared error in each, b."""
        z, (t, _) = self.encode(batch.image), self.times_and_shares(len(batch.key), 0.0)
        eps, noise = torch.randn_like(z), NoiseAt.of(self.schedule, t)
        predicted = self.level_network.network(noise.perturb(z, eps), noise.level.float(), condition).float()
        return predicted, (predicted - eps).square().flatten(1).mean(1)

    # Sampling.

    @property
    def sampling_denoiser(self) -> Denoises:
        """The denoiser that the sampler calls."""
        return self.classifier_free(self.denoiser)

    @torch.no_grad()
    def latent_shape(self, shape: DataSpec) -> tuple[int, ...]:
        """d, *z: the shape of the latent of images of this kind."""
        if self.autoencoder is None:
            return shape.channels, *shape.size
        return tuple(self.encode(torch.zeros(1, shape.channels, *shape.size, device=self.device)).shape[1:])

    @torch.no_grad()
    def sample(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """b c *size in [-1, 1]; a region that the condition gives is kept (`training.completion`)."""
        denoiser, spec = self.sampling_denoiser, self.needed_spec()
        given = GivenRegion.of(condition, spec, self.device)
        if given is None:
            return self._imaged(self._walked(denoiser, condition, seeds), self._alpha_0())
        denoiser = given.known_to(denoiser, self.encode, self.latent_shape(spec)[1:])
        return given.kept_in(self._imaged(self._walked(denoiser, condition, seeds), self._alpha_0()))

    @torch.no_grad()
    def trajectory(self, condition: Condition, seed: int) -> Tensor:
        """n c *size in [-1, 1]: the images that the denoiser expects at steps of a sample, and the sample at last."""
        watched = Watched(self.sampling_denoiser)
        last = self._walked(watched, condition, [seed])
        return torch.cat([*map(self._imaged, watched.some(NUM_SHOWN - 1)), self._imaged(last, self._alpha_0())])

    def _walked(self, denoiser: Denoises, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """z_0, b d *z."""
        noise = SeededNoise(seeds)
        start = sent(noise(self.latent_shape(self.needed_spec())), self.device)
        return self.sampler(denoiser, start, self.scaled(condition.to(self.device)), noise.like)

    def _imaged(self, z: Tensor, alpha: Tensor | float = 1.0) -> Tensor:
        """The images of latents alpha z, b d *z -> b c *s."""
        return self.likelihood.image(self.located(z / alpha))

    def _alpha_0(self) -> Tensor:
        return self.schedule.alpha(torch.zeros((), device=self.device))


def gradient_difference(images: Tensor, others: Tensor) -> Tensor:
    """The mean absolute difference between the absolute differences of neighbours in two images, over all axes.

    Mathieu et al. 2016, "Deep Multi-Scale Video Prediction beyond Mean Square Error", eq. 6 with exponent 1.
    """
    axes = range(2, images.ndim)
    parts = [(images.diff(dim=axis).abs() - others.diff(dim=axis).abs()).abs().mean() for axis in axes]
    return torch.stack(parts).mean()
