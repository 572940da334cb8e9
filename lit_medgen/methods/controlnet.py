r"""ControlNet: a trained diffusion model made to follow an image, such as a FLAIR scan whose T1 is asked for.

Zhang, Rao, Agrawala. "Adding Conditional Control to Text-to-Image Diffusion Models". ICCV 2023; for FLAIR to T1 as in
Pinaya et al. "Generative AI for Medical Imaging: extending the MONAI Framework" (2023), experiment IV.

    loss = E |target - prediction(x_t, t, c, s)|^2,   s the source        (Zhang et al., eq. 5; the base's own target)

The base, an LDM or a DDPM whose network is our `UNet`, is frozen, and kept in the checkpoint with all that it is built
on. A copy of its network's way down learns to read the source (`lit_medgen.networks.controlnet`).

What differs from the code of Pinaya et al.:

- The source is left out of some training images, so that a model can also be asked for images without one; theirs never
  is. Guidance keeps the source in both of its halves, as theirs.
- Their images were compared as 8-bit PNG; here no file stands between an image and its score.

Shapes: b images, c channels, *s their axes; k channels of the source; d channels and *z axes of what noise is added to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from lit_medgen.batch import ABSENT, Batch, Condition, DataSpec
from lit_medgen.diffusion import Denoiser, Denoises, Sampler
from lit_medgen.errors import InputError
from lit_medgen.networks.controlnet import ControlledUNet
from lit_medgen.networks.unet import UNet
from lit_medgen.training.conditional import Conditioning
from lit_medgen.training.frozen import FrozenPart
from lit_medgen.training.gaussian_diffusion import GaussianDiffusion
from lit_medgen.training.learning_rate import Constant
from lit_medgen.training.method import default_optimizer


class ControlNet(GaussianDiffusion):
    """A frozen diffusion model with a trained copy of its way down that reads a source.

    Args:
        base: checkpoint of an `LDM` or a `DDPM` with a `UNet`, trained on images of the same kind and the same people.
        source_channels: channels of the source, the images that `preprocessing.sources` of the data names.
        channels: width of the source's encoder at each size: one for the size of the images, and one more for each
            halving down to that of what the base's network reads.
        scale: factor of what the source adds; 0 is the base alone.
        drop_source: probability that the source of a training image is left out.
        sampler: integrates the reverse process; None: that of the base.
        conditioning: how the covariates of the base are learned, and guide.
        optimizer: makes the optimizer from the trained parameters.
        learning_rate_schedule: factor of the optimizer's learning rate at each step; None: constant.
    """

    base: GaussianDiffusion
    required = ("source",)
    kept = ("source",)

    def __init__(
        self,
        base: str,
        source_channels: int = 1,
        channels: Sequence[int] = (16, 32, 64, 96),
        scale: float = 1.0,
        drop_source: float = 0.1,
        sampler: Sampler | None = None,
        conditioning: Conditioning | None = None,
        optimizer: OptimizerCallable = default_optimizer,
        learning_rate_schedule: Constant | None = None,
    ) -> None:
        super().__init__(
            None,
            None,
            sampler,
            conditioning=conditioning,
            optimizer=optimizer,
            learning_rate_schedule=learning_rate_schedule,
        )
        make = "python -m lit_medgen fit --config configs/ldm_2d.yaml"
        self.frozen_parts = {"base": FrozenPart(Path(base), GaussianDiffusion, make)}
        if not 0 <= drop_source < 1:
            raise ValueError(f"model.init_args.drop_source is {drop_source}; give a number from 0 to below 1.")
        if source_channels < 1:
            raise ValueError(f"model.init_args.source_channels is {source_channels}; give at least 1.")
        if not channels or min(channels) < 1:
            raise ValueError(f"model.init_args.channels is {list(channels)}; give at least one width, each at least 1.")
        if not math.isfinite(scale):
            raise ValueError(f"model.init_args.scale is {scale}; give a finite number.")
        self.source_channels, self.channels, self.scale = source_channels, tuple(channels), scale
        self.drop_source, self.asked_sampler = drop_source, sampler

    def build(self) -> None:
        """Copies the way down of the base's network; InputError for a base that cannot be steered."""
        base, path = self.base, self.frozen_parts["base"].path
        key = f"model.init_args.base: {path}"
        network = base.denoiser.network
        if type(network) is not UNet or base.required:
            of = f" from its {' and '.join(base.required)}" if base.required else ""
            raise InputError(
                f"{key} makes images{of} by a {type(network).__name__}; give an LDM or a DDPM whose network is a "
                "lit_medgen.networks.UNet and which needs nothing but noise and covariates."
            )
        self._refuse_other_size(base.needed_spec().size, base.clean_shape()[1:])
        self.reads_images = base.reads_images
        controlled = ControlledUNet(network, self.source_channels, self.channels, self.scale)
        learned = base.denoiser
        denoiser = Denoiser(controlled, learned.schedule, base.parametrisation, learned.weight)
        self.take_covariates(network.covariates)
        self.take_denoiser(denoiser, base.parametrisation, self.asked_sampler or base.sampler)

    def _refuse_other_size(self, size: Sequence[int], read: Sequence[int]) -> None:
        """InputError unless the source's encoder halves images to the size of what the base's network reads."""
        factor = 2 ** (len(self.channels) - 1)
        if [side * factor for side in read] != list(size):
            raise InputError(
                f"model.init_args.channels has {len(self.channels)} widths, for {len(self.channels) - 1} halvings, but "
                f"images are {' x '.join(map(str, size))} and the base's network reads {' x '.join(map(str, read))}; "
                "give one width more than there are halvings."
            )

    def check(self, spec: DataSpec) -> None:
        """InputError too for sources that the network does not read."""
        super().check(spec)
        if len(spec.sources) != self.source_channels:
            raise InputError(
                f"model.init_args.source_channels is {self.source_channels}, but the data has "
                f"{', '.join(spec.sources) or 'no sources'}; name in data.init_args.preprocessing.sources what images "
                "are made from, and give their number."
            )
        if tuple(spec.source_size) != tuple(spec.size):
            raise InputError(
                f"data.init_args: sources of {' x '.join(map(str, spec.source_size))} voxels, but images of "
                f"{' x '.join(map(str, spec.size))}; give sources of the same size."
            )

    # What diffusion asks for: all of it is the base's.

    def on_fit_start(self) -> None:
        """Has training and validation batches hold latents instead of images, where the base works in latents."""
        self.base.read_latents_of(self.data, self.trainer)

    def rehearsed(self, batch: Batch) -> Batch:
        """The batch as the base reads it."""
        return self.base.rehearsed(super().rehearsed(batch))

    def clean(self, batch: Batch) -> Tensor:
        """What the base adds noise to, b d *z."""
        return self.base.clean(batch)

    def clean_shape(self) -> tuple[int, ...]:
        """The shape d *z of what the base adds noise to."""
        return self.base.clean_shape()

    def imaged(self, x: Tensor) -> Tensor:
        """The base's images, b d *z -> b c *size in [-1, 1]."""
        return self.base.imaged(x)

    def noised_of(self, images: Tensor) -> Tensor:
        """What the base adds noise to of images, b c *size -> b d *z."""
        return self.base.noised_of(images)

    def bounded(self, denoiser: Denoises) -> Denoises:
        """The denoiser within the range that the base's has."""
        return self.base.bounded(denoiser)

    def scaled(self, condition: Condition) -> Condition:
        """What the network reads: the source, and covariates."""
        if condition.source is None:
            raise InputError("ControlNet makes images from sources: condition.source is missing.")
        return super().scaled(condition)

    def training_condition(self, condition: Condition, num: int) -> Condition:
        """The condition of a loss; in training some sources are left out, independently of the covariates."""
        condition = super().training_condition(condition, num)
        if not self.training or condition.source is None:
            return condition
        rows = torch.rand(num, device=self.device) < self.drop_source
        source = condition.source.masked_fill(rows.view(-1, *[1] * (condition.source.ndim - 1)), ABSENT["source"])
        return replace(condition, source=source)
