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
- Codes: [paper, experiment II] a VQGAN as first stage. As there (in MONAI's inferer), a latent is an embedded code,
  and so becomes what is sampled before it is decoded.
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

from pathlib import Path
from typing import Literal

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lit_medgen.batch import Batch, TrainingData
from lit_medgen.diffusion import (
    DDIM,
    Denoiser,
    LossWeight,
    OptimalTransport,
    ParametrisationName,
    Sampler,
    ScaledLinearBeta,
    Schedule,
    TrainingTimes,
)
from lit_medgen.errors import InputError
from lit_medgen.networks.protocols import LatentNetwork, as_module
from lit_medgen.training.conditional import Conditioning
from lit_medgen.training.first_stage import FirstStage
from lit_medgen.training.fitting import refuse_unfit
from lit_medgen.training.frozen import FrozenPart
from lit_medgen.training.gaussian_diffusion import GaussianDiffusion
from lit_medgen.training.latent_scale import LatentScale
from lit_medgen.training.latents import LatentStore, kept_of, without_images
from lit_medgen.training.learning_rate import Constant
from lit_medgen.training.method import default_optimizer


class LDM(GaussianDiffusion):
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
    fixed = ("parametrisation", "latent_scale")
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
        schedule = schedule or ScaledLinearBeta(beta_end=0.0205)
        super().__init__(
            self.denoiser_type(as_module(network), schedule, parametrisation, weight),
            parametrisation,
            sampler or DDIM(200),
            training_times,
            coupling,
            conditioning,
            optimizer,
            learning_rate_schedule,
        )
        config = "autoencoder_kl_2d" if getattr(network, "dim", 3) == 2 else "autoencoder_kl"
        make = f"python -m lit_medgen fit --config configs/{config}.yaml"
        self.frozen_parts = {"first_stage": FrozenPart(Path(first_stage), FirstStage, make)}
        if slabs is not None and slabs < 1:
            raise ValueError(f"model.init_args.slabs is {slabs}; give at least 1, or leave it out to decode at once.")
        self.latent, self.latent_scale, self.slabs = latent, latent_scale, slabs

    def joined_channels(self, latent_channels: int) -> int:
        """Channels that the network reads beside those of the latent, of which there are so many."""
        return 0

    def build(self) -> None:
        """Makes room for the scale of the latents; InputError if these do not fit the network."""
        channels, *size = self.first_stage.latent_shape
        path = self.frozen_parts["first_stage"].path
        joined = self.joined_channels(channels)
        refuse_unfit("network", self.denoiser.network, channels, size, f"the latents of {path}", joined)
        if self.slabs and not self.first_stage.decodes_in_slabs:
            raise InputError(
                f"model.init_args.slabs is {self.slabs}, but {path} ({type(self.first_stage).__name__}) decodes in one "
                "piece only; leave slabs out."
            )
        self.scale = LatentScale(channels if self.latent_scale == "channel" else 1)

    # Latents.

    def on_fit_start(self) -> None:
        """Has training and validation batches hold latents instead of images; measures their scale."""
        store = self.read_latents_of(self.data, self.trainer)
        self.scale.measure(store, self.first_stage, self.data.people("train"), self.trainer, self.latent == "sample")

    def read_latents_of(self, data: TrainingData, trainer: L.Trainer) -> LatentStore:
        """Has the data's batches hold latents instead of images; returns their store."""
        store = LatentStore.of_data(self.first_stage, data, trainer)
        data.read_latents(store)
        return store

    def rehearsed(self, batch: Batch) -> Batch:
        """The batch with latents in place of its images."""
        return without_images(super().rehearsed(batch), self.first_stage)

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

    # What diffusion asks for.

    def clean(self, batch: Batch) -> Tensor:
        """The normalised latents z of a batch, b d *z in float32, to which noise is added."""
        return self.latents(batch)

    def noised_of(self, images: Tensor) -> Tensor:
        """The normalised latents of images, b d *z in float32; of a latent that is a distribution its mean."""
        with torch.autocast(self.device.type, enabled=False):
            return self.scale.normalise(self.first_stage.encode(images).float())

    def clean_shape(self) -> tuple[int, ...]:
        """The shape d *z of a latent."""
        return tuple(self.first_stage.latent_shape)

    def imaged(self, x: Tensor) -> Tensor:
        """The images of normalised latents, b d *z -> b c *size in [-1, 1]; those of a VQGAN become codes first."""
        latents = self.first_stage.nearest(self.scale.denormalise(x))
        return self.first_stage.decode_in_slabs(latents, self.slabs) if self.slabs else self.first_stage.decode(latents)
