r"""Upscaler: images of a fine grid from their low resolution, the second stage of a cascade or by itself.

Pinaya et al. "Generative AI for Medical Imaging: extending the MONAI Framework" (2023), experiment V, in image space;
after Ho et al. "Cascaded Diffusion Models for High Fidelity Image Generation" (2022), section 4.2.

    y    = up(mean of blocks(x)),  y_s = alpha_s y + sigma_s eps',  s ~ U[0, max_noise]   (conditioning augmentation)
    loss = E |target - prediction(x_t, y_s, t, s)|^2,  on patches of x
    sample   every x̂ by overlapping tiles of a patch's size, fused inside the step (`lit_medgen.diffusion.Tiled`)

The low resolution of a training image is made here, so any data will do. It is brought to the grid of the image by
cubic interpolation, noised on the schedule of the diffusion, and joined to x_t as further channels. Noise in training
makes the model forgive the faults of low resolutions that another model made; `noise_level` is what it gets when it
samples. With `residual_std` the network corrects a guess that knows no more than how far images are from y:

    x ~ N(y', v), y' = y_s / alpha_s, v = residual_std^2 + (sigma_s / alpha_s)^2
    x̂ = y' + alpha_t v / (alpha_t^2 v + sigma_t^2) (x_t - alpha_t y') + sigma_t sqrt(v / (alpha_t^2 v + sigma_t^2)) F

the posterior mean of x, and its standard deviation times what the network F says of x_t, y_s, t and s (ours; the
preconditioning of Karras et al. 2022, eq. 7, around the low resolution instead of 0).

What differs from the code of Pinaya et al. (Warvito/generative_brain_upscaler):

- The network is told the noise level of the low resolution, as a covariate. Theirs passes it to a network that has no
  embedding of it.
- Images larger than a patch are made tile by tile in every step; theirs are denoised whole, in latents.
- No autoencoder and no prompt; low resolutions lie in [-1, 1] as images do, theirs in [0, 1] beside latents.

Shapes: b images, c channels, *s their axes; *l those of the low resolution, *p those of a patch.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lit_medgen.batch import Batch, Condition, DataSpec, Score, TrainingData
from lit_medgen.diffusion import (
    Denoises,
    LossWeight,
    ParametrisationName,
    Sampler,
    Schedule,
    Tiled,
    TrainingTimes,
)
from lit_medgen.errors import InputError
from lit_medgen.images.resampling import block_means, interpolated
from lit_medgen.methods.ddpm import DDPM
from lit_medgen.networks import Covariates
from lit_medgen.networks.protocols import LatentNetwork
from lit_medgen.seeds import SeededNoise
from lit_medgen.training.conditional import Conditioning
from lit_medgen.training.fitting import refuse_unfit
from lit_medgen.training.gaussian_diffusion import SourceDenoiser
from lit_medgen.training.learning_rate import Constant
from lit_medgen.training.method import default_optimizer

NOISE_LEVEL = "noise_level"
"""Name of the covariate that tells the network how noisy the low resolution is: 0 to 1, as a share of `max_noise`."""


class UpscalingDenoiser(SourceDenoiser):
    """A denoiser whose network may correct a guess of the image from x_t and its low resolution.

    Attributes:
        residual_std: standard deviation of images around their low resolution; None: there is no guess.
        max_noise: the time at which the covariate `noise_level` is 1.
    """

    residual_std: float | None = None
    max_noise: float = 0.0

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """What the network says, b c *s; where there is a guess, of how far the image is from that."""
        found = super().predict(x_t, t, condition)
        if self.residual_std is None:
            return found
        mean, std = self.guess(x_t, t, condition)
        return self.target(mean + std * found.to(x_t.dtype), x_t, t)

    def guess(self, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Mean, b c *s, and standard deviation, b 1 *1, of images that are Gaussian around their low resolution."""
        assert condition.source is not None
        assert self.residual_std is not None
        alpha_t, sigma_t = self.process.coefficients(t, x_t)
        alpha_s, sigma_s = self.process.coefficients(self.max_noise * condition.attributes[NOISE_LEVEL], x_t)
        y, variance = condition.source.to(x_t.dtype) / alpha_s, self.residual_std**2 + (sigma_s / alpha_s) ** 2
        share = variance / (alpha_t**2 * variance + sigma_t**2)
        return y + alpha_t * share * (x_t - alpha_t * y), sigma_t * share.sqrt()


class Upscaler(DDPM):
    """Gaussian diffusion of images, from their low resolution.

    Args:
        network: `UNet`, or any module called as network(x_t, t, condition), as `LatentNetwork` describes, with twice
            the channels of an image and `noise_level` among the numbers of its covariates.
        factor: voxels of an image along each axis for each of its low resolution, or one number for all axes.
        patch: voxels along each axis of a training crop, which is also a tile of a sample; one number for all axes;
            None: whole images.
        overlap: share of a tile's side, at least, that it has in common with the next.
        max_noise: the time on the schedule, 0 to below 1, up to which low resolutions are noised in training.
        noise_level: the same of a low resolution that is sampled from, at most `max_noise`.
        schedule: noise schedule; None: `Cosine` with 250 levels.
        parametrisation: what the network predicts.
        residual_std: about the standard deviation of images around the interpolation of their low resolution: the
            network then corrects a guess, which learns faster; None: it predicts all, as the paper's.
        weight: weight of the squared error over time; None: `UniformWeight`.
        sampler: integrates the reverse process; None: 250 steps of `Ancestral`.
        training_times: which times are trained on; None: all alike.
        conditioning: how other covariates are learned, and guide.
        optimizer: makes the optimizer from the trained parameters.
        learning_rate_schedule: factor of the optimizer's learning rate at each step; None: constant.
    """

    required = ("source",)
    kept = ("source", NOISE_LEVEL)
    reconstructs = True
    fixed = ("parametrisation", "factor", "max_noise", "residual_std")
    denoisers = MappingProxyType({"l2": UpscalingDenoiser})
    denoiser: UpscalingDenoiser

    def __init__(
        self,
        network: LatentNetwork,
        factor: int | list[int] = 2,
        patch: int | list[int] | None = None,
        overlap: float = 0.25,
        max_noise: float = 0.35,
        noise_level: float = 0.0,
        schedule: Schedule | None = None,
        parametrisation: ParametrisationName = "v",
        residual_std: float | None = None,
        weight: LossWeight | None = None,
        sampler: Sampler | None = None,
        training_times: TrainingTimes | None = None,
        conditioning: Conditioning | None = None,
        optimizer: OptimizerCallable = default_optimizer,
        learning_rate_schedule: Constant | None = None,
    ) -> None:
        super().__init__(
            network,
            schedule,
            parametrisation,
            "l2",
            weight,
            sampler=sampler,
            training_times=training_times,
            conditioning=conditioning,
            optimizer=optimizer,
            learning_rate_schedule=learning_rate_schedule,
        )
        if not 0 <= noise_level <= max_noise < 1:
            raise ValueError(
                f"model.init_args.noise_level is {noise_level} and max_noise {max_noise}; give 0 <= noise_level <= "
                "max_noise < 1: nothing noisier was trained on."
            )
        if not 0 <= overlap < 1:
            raise ValueError(f"model.init_args.overlap is {overlap}; give a share from 0 to below 1.")
        self.factor, self.patch, self.overlap = factor, patch, overlap
        if residual_std is not None and not residual_std > 0:
            raise ValueError(f"model.init_args.residual_std is {residual_std}; give a number above 0, or null.")
        self.max_noise, self.noise_level, self.residual_std = max_noise, noise_level, residual_std
        self.denoiser.max_noise, self.denoiser.residual_std = max_noise, residual_std

    def take_covariates(self, covariates: Covariates) -> None:
        """Takes those that images can be asked for; ValueError for a network that is not told the noise level."""
        if NOISE_LEVEL not in covariates.numbers:
            raise ValueError(
                f"model.init_args.network: it is not told how noisy the low resolution is; add {NOISE_LEVEL} to the "
                "numbers of its covariates."
            )
        super().take_covariates(replace(covariates, numbers=[n for n in covariates.numbers if n != NOISE_LEVEL]))

    # Sizes.

    def check_shape(self, shape: DataSpec) -> None:
        """InputError for a factor, a patch or a network that does not fit images of this size."""
        size = " x ".join(map(str, shape.size))
        for name, value in (("factor", self.factor), ("patch", self.patch)):
            if isinstance(value, list) and len(value) != len(shape.size):
                raise InputError(
                    f"model.init_args.{name} is {value}, but images are {size}; give one for each axis, or one for all."
                )
        if any(each < 1 or side % each for side, each in zip(shape.size, self.factors(shape), strict=True)):
            raise InputError(
                f"model.init_args.factor is {self.factor}, but images are {size}; give whole numbers that divide them, "
                "or images of another size."
            )
        if set(self.factors(shape)) == {1}:
            raise InputError("model.init_args.factor is 1, which makes no image finer; give 2 or more along some axis.")
        tile = self.tile(shape)
        if any(not 1 <= side <= most for side, most in zip(tile, shape.size, strict=True)):
            raise InputError(
                f"model.init_args.patch is {self.patch}, but images are {size}; give 1 at least, and no more than that."
            )
        refuse_unfit("network", self.denoiser.network, shape.channels, tile, "patches", shape.channels)

    def factors(self, spec: DataSpec) -> tuple[int, ...]:
        """The factor of each axis."""
        return tuple(_of_each_axis(self.factor, spec))

    def tile(self, spec: DataSpec) -> tuple[int, ...]:
        """Voxels of a patch along each axis."""
        return tuple(spec.size if self.patch is None else _of_each_axis(self.patch, spec))

    def source_spec(self, spec: DataSpec) -> DataSpec:
        """What a low resolution must be like: the images' field of view in larger voxels."""
        factors = self.factors(spec)
        size = tuple(side // each for side, each in zip(spec.size, factors, strict=True))
        spacing = tuple(mm * each for mm, each in zip(spec.spacing_mm, factors, strict=True))
        return replace(super().source_spec(spec), size=size, spacing_mm=spacing)

    def source_of(self, images: Tensor) -> Tensor:
        """The low resolution of images, b c *s -> b c *l."""
        return block_means(images, self.factors(self.needed_spec()))

    def baselines(self, images: Tensor) -> dict[str, Tensor]:
        """Their low resolution interpolated, b c *s -> b c *s in [-1, 1]."""
        low, size = self.source_of(images), images.shape[2:]
        return {
            "linear interpolation": interpolated(low, size, "linear"),
            "cubic interpolation": interpolated(low, size, "cubic").clamp(-1, 1),
        }

    # Training: on patches, from a low resolution noised to a random level.

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted error of the prediction, on a random patch of each image."""
        return super().loss(self.patches(batch))

    def patches(self, batch: Batch) -> Batch:
        """A random patch of each image, b c *p, with the same patch of its low resolution on the grid as its source."""
        images, tile = batch.image, self.tile(self.needed_spec())
        sources = interpolated(self.source_of(images), images.shape[2:], "cubic")
        room = [side - most + 1 for side, most in zip(images.shape[2:], tile, strict=True)]
        firsts = torch.stack([torch.randint(most, (len(images),)) for most in room], dim=1).tolist()  # on the CPU
        windows = [tuple(slice(a, a + side) for a, side in zip(first, tile, strict=True)) for first in firsts]
        images, sources = (
            torch.stack([image[(slice(None), *window)] for image, window in zip(each, windows, strict=True)])
            for each in (images, sources)
        )
        return replace(batch, image=images, condition=replace(batch.condition, source=sources))

    def training_condition(self, condition: Condition, num: int) -> Condition:
        """The condition of a loss, its source noised to a random level."""
        return self.noised(super().training_condition(condition, num))

    def measured(self, batch: Batch) -> tuple[Batch, Condition]:
        """A random patch of each image, and its condition, noised to a random level."""
        batch = self.patches(batch)
        return batch, self.noised(self.scaled(batch.condition))

    def noised(self, condition: Condition) -> Condition:
        """The condition with its source, b c *p, noised to random levels, of which the network is told."""
        assert condition.source is not None
        level = self.max_noise * torch.rand(len(condition.source), device=self.device)
        return self.at_level(condition, level, torch.randn_like(condition.source))

    def at_level(self, condition: Condition, level: Tensor, eps: Tensor) -> Condition:
        """The condition with its source noised to levels, b, by eps, b c *s, and told of it."""
        assert condition.source is not None
        source = self.denoiser.process.perturb(condition.source, level, eps)
        attributes = condition.attributes | {NOISE_LEVEL: level / (self.max_noise or 1.0)}
        return replace(condition, source=source, attributes=attributes)

    # Sampling.

    def bounded(self, denoiser: Denoises) -> Denoises:
        """The denoiser of whole images by tiles, clipped to the range of images."""
        return super().bounded(Tiled(denoiser, self.tile(self.needed_spec()), self.overlap))

    def conditioned(self, condition: Condition, noise: SeededNoise) -> Condition:
        """The condition with the low resolution on the grid, and noised to `noise_level`."""
        source, spec = condition.source, self.needed_spec()
        if source is None:
            raise InputError("Upscaler makes images from their low resolution: condition.source is missing.")
        expected = (spec.channels, *self.source_spec(spec).size)
        if tuple(source.shape[1:]) != expected:
            raise InputError(
                f"condition.source is {tuple(source.shape[1:])}; expected {expected}, the low resolution of images of "
                f"{(spec.channels, *spec.size)} at factor {self.factor}."
            )
        source = interpolated(source, spec.size, "cubic")
        level = torch.full((len(source),), self.noise_level, device=self.device)
        return self.at_level(self.scaled(replace(condition, source=source)), level, noise.like(source))

    # The report.

    @property
    def swapped_groups(self) -> dict[str, tuple[str, ...]]:
        """What the condition alarm measures; that the network is told the noise level, by itself too."""
        return super().swapped_groups | {"source": ("source",), NOISE_LEVEL: (NOISE_LEVEL,)}

    def scores(self, data: TrainingData) -> dict[str, Score]:
        """The noise level of the sources too."""
        level = Score(self.noise_level, "noise level of the low resolutions when sampling, as a time of the schedule")
        return super().scores(data) | {NOISE_LEVEL: level}


def _of_each_axis(value: int | list[int], spec: DataSpec) -> list[int]:
    return [value] * len(spec.size) if isinstance(value, int) else value
