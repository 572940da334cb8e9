r"""LDM: latent diffusion, images made in the latents of an autoencoder, in 2D and 3D, from any subset of covariates.

Pinaya, Graham, Kerfoot et al. "Generative AI for Medical Imaging: extending the MONAI Framework". arXiv 2307.15208,
experiments I and II, appendix B; after Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models"
(CVPR 2022), and with the covariates of Pinaya et al., "Brain Imaging Generation with Latent Diffusion Models" (2022).

A frozen first stage turns images into latents, which a denoiser learns to make out of noise:

    z      = (E(x) - shift) / scale                                              the normalised latent
    z_t    = alpha_t z + sigma_t eps,                    v = alpha_t eps - sigma_t z
    loss   = E |v - v_theta(z_t, t, c)|^2                                        (Rombach et al., eq. 3, with v for eps)
    sample   x = D(shift + scale z_0), z_0 by a sampler from z_1 ~ N(0, I), guided by eq. 6 of Ho & Salimans (2022)

What differs from the paper, and from the code of its authors where they disagree:

- Scale of the latents: [paper] none is named, [code] multiplies by 0.3 whatever the autoencoder. Here mean and standard
  deviation of the training latents are measured, kept in the checkpoint and said.
- Latents: [code] encodes images and samples latents in every step. Here images are encoded once, and a latent is the
  mean of its distribution, or sampled from it in every step.
- Condition: [paper] a text, replaced by "" in 10 % of the images. Here a text is one of several covariates, beside
  numbers, categories and sets of labels, each with a null of its own, so that any subset can be asked for.
- Learning: [paper] and [code] have neither averaged weights nor a schedule of the rate; the configs have both.
- Times: continuous in [1/T, 1] and spread evenly over the batch rather than T discrete ones drawn one by one.

Beyond the paper, and in the config: eps and rectified flow, weights and times of the loss, coupling of noise and
latents by optimal transport (Tong et al. 2024), guidance with interval and rescale. Nothing is clipped while sampling:
a latent has no range, as an image has, and cutting z to some would cost the contrast of the strongest features.

Shapes: b images, c channels, *s their axes; d latent channels, *z the axes of the latent map.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from lit_medgen.batch import Batch, Condition, sent
from lit_medgen.diffusion import (
    DDIM,
    Denoiser,
    Denoises,
    LossWeight,
    OptimalTransport,
    ParametrisationName,
    Sampler,
    ScaledLinearBeta,
    Schedule,
    TrainingTimes,
)
from lit_medgen.diffusion.denoisers import Watched
from lit_medgen.diffusion.gaussian import broadcast
from lit_medgen.errors import InputError
from lit_medgen.networks.protocols import LatentNetwork, as_module
from lit_medgen.seeds import SeededNoise
from lit_medgen.training.conditional import Conditional, Conditioning
from lit_medgen.training.first_stage import FirstStage
from lit_medgen.training.frozen import FrozenPart
from lit_medgen.training.latent_scale import LatentScale
from lit_medgen.training.latents import LatentStore, kept_of
from lit_medgen.training.learning_rate import Constant
from lit_medgen.training.method import default_optimizer

NUM_SHOWN = 8
"""Images that a trajectory shows."""


class LDM(Conditional):
    """Latent diffusion (Pinaya et al. 2023).

    Args:
        network: `UNet`, or any module called as network(z_t, t, condition), as `LatentNetwork` describes; its
            `covariates` are what images can be made from.
        first_stage: checkpoint of a `VQGAN`, an `AutoencoderKL` or another `FirstStage`.
        schedule: noise schedule; None: `ScaledLinearBeta` from 0.0015 to 0.0205.
        parametrisation: what the network predicts.
        weight: weight of the loss over time; None: `UniformWeight`.
        training_times: which times are trained on; None: all alike.
        coupling: pairs noise with images in training; None: at random.
        sampler: integrates the reverse process; None: 200 steps of `DDIM`.
        conditioning: how covariates are learned, and guide.
        latent: of a first stage whose latents are distributions: the mean, or a sample drawn in every step.
        latent_scale: whether latents are brought to mean 0 and variance 1 as a whole, or each channel by itself.
        slabs: planes of each feature map that are decoded at once, for volumes that do not fit; None: all.
        optimizer: makes the optimizer from the trained parameters.
        learning_rate_schedule: factor of the optimizer's learning rate at each step; None: constant.
    """

    first_stage: FirstStage
    scale: LatentScale
    reads_images = False
    denoiser_type = Denoiser

    def __init__(
        self,
        network: LatentNetwork,
        first_stage: str,
        schedule: Schedule | None = None,
        parametrisation: ParametrisationName = "v",
        weight: LossWeight | None = None,
        training_times: TrainingTimes | None = None,
        coupling: OptimalTransport | None = None,
        sampler: Sampler | None = None,
        conditioning: Conditioning | None = None,
        latent: Literal["mean", "sample"] = "mean",
        latent_scale: Literal["global", "channel"] = "global",
        slabs: int | None = None,
        optimizer: OptimizerCallable = default_optimizer,
        learning_rate_schedule: Constant | None = None,
    ) -> None:
        super().__init__(getattr(network, "covariates", None), conditioning, optimizer, learning_rate_schedule)
        if hasattr(network, "num_classes") and "label_map" not in self.required:
            raise ValueError(
                f"model.init_args.network: {type(network).__name__} reads a label map, of which {type(self).__name__} "
                "gives none; take lit_medgen.methods.LSDM as the model, or lit_medgen.networks.UNet."
            )
        config = "autoencoder_kl_2d" if getattr(network, "dim", 3) == 2 else "autoencoder_kl"
        make = f"python -m lit_medgen fit --config configs/{config}.yaml"
        self.frozen_parts = {"first_stage": FrozenPart(Path(first_stage), FirstStage, make)}
        schedule = schedule or ScaledLinearBeta(beta_end=0.0205)
        self.denoiser = self.denoiser_type(as_module(network), schedule, parametrisation, weight)
        self.sampler: Sampler = sampler or DDIM(200)
        self.sampler.check(schedule)
        self.training_times, self.coupling, self.parametrisation = training_times, coupling, parametrisation
        if coupling:
            coupling.check(self.covariates.numbers, text=self.covariates.text_channels > 0)
        if slabs is not None and slabs < 1:
            raise ValueError(f"model.init_args.slabs is {slabs}; give at least 1, or leave it out to decode at once.")
        self.latent, self.latent_scale, self.slabs = latent, latent_scale, slabs

    def networks_for_speed(self) -> list[nn.Module]:
        """The denoising network, which `trainer.speed` may compile."""
        return [self.denoiser.network]

    def input_channels(self, latent_channels: int) -> int:
        """Channels that the network reads, from those of a latent."""
        return latent_channels

    def build(self) -> None:
        """Makes room for the scale of the latents; InputError if these do not fit the network."""
        channels, *size = self.first_stage.latent_shape
        network, path = self.denoiser.network, self.frozen_parts["first_stage"].path
        expected_of = {"dim": len(size), "in_channels": self.input_channels(channels), "out_channels": channels}
        for name, expected in expected_of.items():
            if (found := getattr(network, name, expected)) != expected:
                raise InputError(
                    f"model.init_args.network.init_args.{name} is {found}, but the latents of {path} have {channels} "
                    f"channels and {len(size)} axes; give {expected}."
                )
        divisor = getattr(network, "divisor", 1)
        if any(side % divisor for side in size):
            raise InputError(
                f"model.init_args.first_stage: the latents of {path} are {' x '.join(map(str, size))}, but the network "
                f"takes multiples of {divisor}; give images of another size, or a network of fewer levels."
            )
        if self.slabs and not self.first_stage.decodes_in_slabs:
            raise InputError(
                f"model.init_args.slabs is {self.slabs}, but {path} ({type(self.first_stage).__name__}) decodes in one "
                "piece only; leave slabs out."
            )
        self.scale = LatentScale(channels if self.latent_scale == "channel" else 1)

    def facts(self) -> dict[str, Any]:
        """What the network has learned to predict, and of which latents at which noise levels."""
        log_snr = self.denoiser.schedule.log_snr(torch.linspace(0.1, 0.9, 9, device=self.device)).cpu()
        return {"parametrisation": self.parametrisation, "latent_scale": self.latent_scale, "log_snr": log_snr}

    def restore(self, facts: dict[str, Any]) -> None:
        """InputError if the network is asked for something else."""
        for name in ("parametrisation", "latent_scale"):
            if (asked := getattr(self, name)) != facts[name]:
                raise InputError(
                    f"model.init_args.{name} is {asked}, but this model was trained with {facts[name]}; leave it so."
                )
        if not torch.allclose(self.facts()["log_snr"], facts["log_snr"], rtol=1e-4):
            raise InputError("model.init_args.schedule: another than this model was trained with; leave it as it was.")

    # Latents.

    def on_fit_start(self) -> None:
        """Has training and validation batches hold latents instead of images; measures their scale."""
        store = LatentStore.of_data(self.first_stage, self.data, self.trainer)
        self.scale.measure(store, self.first_stage, self.data.people("train"), self.trainer, self.latent == "sample")
        self.data.read_latents(store)

    def on_train_start(self) -> None:
        """Logs the scale of the latents."""
        super().on_train_start()
        self.scale.log(self.trainer)

    def latents(self, batch: Batch) -> Tensor:
        """The normalised latents z of a batch, b d *z in float32: of what it holds, or else of its images."""
        if not self.built:
            raise InputError("LDM has no first stage yet; give --ckpt_path, or fit it.")
        with torch.autocast(self.device.type, enabled=False):
            kept = kept_of(self.first_stage, batch)
            return self.scale.normalise(self.first_stage.latents(kept, sample=self.latent == "sample"))

    # The loss.

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted squared error of the prediction, averaged over all values of the latents."""
        condition = self.training_condition(batch.condition, len(batch.key))
        z, t, share, eps = self.draws(batch)
        error = self.denoiser.weighted_error(z, t, eps, condition)
        return {"loss": (broadcast(share, error) * error).mean()}

    def draws(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents b d *z, times b, the share of each in a mean, b, and the noise of each, b d *z."""
        z = self.latents(batch)
        t, share = self.times_and_shares(len(z), self.denoiser.schedule.t_min, self.training_times)
        return z, t, share, self.coupled(z, torch.randn_like(z), batch.condition)

    def coupled(self, z: Tensor, eps: Tensor, condition: Condition) -> Tensor:
        """The noise in the order of the latents that it is added to, b d *z; validation leaves it as it was drawn."""
        if self.coupling is None or not self.training:
            return eps
        others = [name for name in self.covariates.names if name not in self.covariates.numbers]
        return self.coupling(z, eps, self.coupling.classes(condition, z, self.covariates.numbers, others))

    def prediction(self, batch: Batch, condition: Condition) -> tuple[Tensor, Tensor]:
        """What the network predicts of the loss's latents, b d *z, and its mean squared error in each, b."""
        z, t, _, eps = self.draws(batch)
        z_t = self.denoiser.process.perturb(z, t, eps)
        predicted = self.denoiser.predict(z_t, t, condition).float()
        return predicted, (predicted - self.denoiser.target(z, z_t, t)).square().flatten(1).mean(1)

    # Sampling.

    @property
    def sampling_denoiser(self) -> Denoises:
        """The denoiser that the sampler calls, with classifier-free guidance where there is any."""
        return self.classifier_free(self.denoiser)

    def denoiser_for(self, condition: Condition) -> Denoises:
        """The denoiser that makes images from this condition, which is as it was asked for, not scaled."""
        return self.sampling_denoiser

    @torch.no_grad()
    def sample(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """b c *size in [-1, 1]."""
        return self.decoded(self.walked(self.denoiser_for(condition), condition, seeds))

    def walked(self, denoiser: Denoises, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """Normalised latents that the sampler makes, b d *z."""
        noise = SeededNoise(seeds)
        start = sent(noise(self.first_stage.latent_shape), self.device)
        return self.sampler(denoiser, start, self.scaled(condition.to(self.device)), noise.like)

    def decoded(self, z: Tensor) -> Tensor:
        """The images of normalised latents, b d *z -> b c *size in [-1, 1]."""
        latents = self.scale.denormalise(z)
        return self.first_stage.decode_in_slabs(latents, self.slabs) if self.slabs else self.first_stage.decode(latents)

    @torch.no_grad()
    def trajectory(self, condition: Condition, seed: int) -> Tensor:
        """n c *size in [-1, 1]: the images that the denoiser expects at steps of a sample, and the sample at last."""
        watched = Watched(self.denoiser_for(condition))
        last = self.walked(watched, condition, [seed])
        return torch.cat([self.decoded(z) for z in [*watched.some(NUM_SHOWN - 1), last]])
