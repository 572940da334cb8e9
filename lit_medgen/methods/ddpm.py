r"""DDPM: Gaussian diffusion of whole images or volumes, without latents; the baseline 3D-DPM.

Dorjsembe, Odonchimed, Xiao. "Three-Dimensional Medical Image Synthesis with Denoising Diffusion Probabilistic Models"
(MIDL 2022), as the code of its authors' next model has it, Dorjsembe et al., "Conditional Diffusion Models for Semantic
3D Brain MRI Synthesis" (Med-DDPM, 2024); after Ho et al., "Denoising Diffusion Probabilistic Models" (2020).

    x_t  = alpha_t x + sigma_t eps                                               (Ho et al., eq. 4)
    loss = E |eps - eps_theta(x_t, t, c)|                                        (eq. 14, absolute instead of squared)
    sample   T ancestral steps from x_1 ~ N(0, I), with x̂ kept in [-1, 1]        (algorithm 2)

With `concatenate` the network also reads a label map m, eps_theta([x_t, m], t), as Med-DDPM does: joined to the noisy
image, one channel for each of its classes.

What differs from the code:

- It saves no state of the optimizer and goes on from averaged weights; a run here resumes exactly.
- Weights are averaged in every step rather than in every tenth, with the decay that this makes the same.
- Times: continuous in [1/T, 1] and spread evenly over the batch rather than T discrete ones drawn one by one.

Beyond it, and in the config: 2D, any parametrisation, schedule and sampler, the squared error, and any subset of
covariates with classifier-free guidance.

Shapes: b images, c channels, *s their axes; k classes of a label map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor

from lit_medgen.batch import Batch, Condition, DataSpec
from lit_medgen.diffusion import (
    Ancestral,
    Clipped,
    Cosine,
    Denoiser,
    Denoises,
    LossWeight,
    ParametrisationName,
    Sampler,
    Schedule,
    UniformWeight,
)
from lit_medgen.errors import InputError
from lit_medgen.networks.protocols import LatentNetwork, as_module
from lit_medgen.networks.semantic_unet import one_hot
from lit_medgen.training.fitting import refuse_unfit
from lit_medgen.training.gaussian_diffusion import GaussianDiffusion, SourceDenoiser

NUM_STEPS = 250
"""T of the paper."""


class AbsoluteDenoiser(SourceDenoiser):
    """A denoiser that is trained by the absolute error of its prediction."""

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The absolute error of every voxel, b c *s."""
        return (prediction - target).abs()


class DDPM(GaussianDiffusion):
    """Gaussian diffusion in image space (Dorjsembe et al. 2022).

    Args:
        network: `UNet`, or any module called as network(x_t, t, condition), as `LatentNetwork` describes; its
            `covariates` are what images can be made from.
        schedule: noise schedule; None: `Cosine` with 250 levels.
        parametrisation: what the network predicts.
        loss_kind: l1 is the absolute error of the prediction, l2 the squared one.
        weight: weight of the squared error over time; None: `UniformWeight`.
        concatenate: whether the network reads a label map beside x_t, as a channel for each class, so that it takes so
            many channels more.
        sampler: integrates the reverse process; None: 250 steps of `Ancestral`.
        others: as of `GaussianDiffusion`.
    """

    fixed: tuple[str, ...] = ("parametrisation", "concatenate")
    denoisers: Mapping[str, type[Denoiser]] = MappingProxyType({"l1": AbsoluteDenoiser, "l2": SourceDenoiser})
    """Kind of the loss -> the denoiser that is trained by it."""

    def __init__(
        self,
        network: LatentNetwork,
        schedule: Schedule | None = None,
        parametrisation: ParametrisationName = "eps",
        loss_kind: Literal["l1", "l2"] = "l1",
        weight: LossWeight | None = None,
        concatenate: bool = False,
        sampler: Sampler | None = None,
        **others: Any,
    ) -> None:
        denoiser = self.denoisers[loss_kind](as_module(network), schedule or Cosine(NUM_STEPS), parametrisation, weight)
        super().__init__(
            denoiser=denoiser, parametrisation=parametrisation, sampler=sampler or Ancestral(NUM_STEPS), **others
        )
        if loss_kind == "l1" and not isinstance(denoiser.weight, UniformWeight):
            raise ValueError(
                f"model.init_args.weight is {type(weight).__name__}, a weight of squared errors, but "
                "model.init_args.loss_kind is l1; give l2, or leave the weight out."
            )
        self.loss_kind, self.concatenate = loss_kind, concatenate
        if concatenate:
            self.required, self.kept = ("label_map",), ("label_map", "source")

    def check_shape(self, shape: DataSpec) -> None:
        """InputError if the images, with the classes of their label maps, do not fit the network."""
        joined = len(shape.classes) if self.concatenate else 0
        of = "images" if not joined else "images with label maps"
        refuse_unfit("network", self.denoiser.network, shape.channels, shape.size, of, joined)

    def clean(self, batch: Batch) -> Tensor:
        """The images of a batch, b c *s, to which noise is added."""
        return batch.image

    def clean_shape(self) -> tuple[int, ...]:
        """The shape c *size of an image; InputError for a model that has seen no data."""
        spec = self.needed_spec()
        return spec.channels, *spec.size

    def imaged(self, x: Tensor) -> Tensor:
        """The images themselves, b c *size."""
        return x

    def noised_of(self, images: Tensor) -> Tensor:
        """The images themselves, b c *size."""
        return images

    def scaled(self, condition: Condition) -> Condition:
        """What the network reads: covariates, and with `concatenate` the label map as `source`, b k *s."""
        condition = super().scaled(condition)
        if not self.concatenate:
            return condition
        if condition.label_map is None:
            raise InputError("DDPM with concatenate makes images from label maps: condition.label_map is missing.")
        return replace(condition, source=one_hot(condition.label_map, len(self.needed_spec().classes)).float())

    def bounded(self, denoiser: Denoises) -> Denoises:
        """The denoiser clipped to the range of images."""
        return Clipped(denoiser)
