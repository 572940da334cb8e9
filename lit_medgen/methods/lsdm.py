r"""LSDM: images made in latents from a label map, with a classifier that shapes the nodule in it.

Zu, "Fast and Precise Lung CT Image Generation via Diffusion Models" (MSc thesis, University of Twente, 2023), chapter
3; where the text and its public code differ, configs/lsdm.yaml has both values.

    z        = (E(x) - shift) / scale                                            the normalised latent (algorithm 1)
    loss     = E |eps - eps_theta(z_t, t, m)|^2,    m: the label map, by SPADE in every residual block (section 3.3),
               or E(m) joined to z_t (eq. 3.3), or both
    g        = M grad log p(y | Crop(D(z_t)), t),   M: the dilated nodule                     (eq. 3.7 and 3.8)
    sample     x̂ <- x̂ + s sigma_t^2 / alpha_t g,   which adds s Sigma g to the mean           (eq. 3.5)

What differs from the thesis:

- Equation 3.6 and algorithm 2 print the guidance as s sigma_t log p: a gradient is missing, and Sigma is sigma^2. Here
  it is equation 3.5, for any sampler: what shifts the mean of a step by s Sigma g shifts x̂ by s sigma_t^2 / alpha_t g.
- The mask of equation 3.8 is 1 outside the nodule; here it is 1 inside.
- Attributes that are asked for share the decoding and the network where one classifier tells them. The malignancy
  follows upon the others, as in section 3.4.1: its gradient is taken where they have moved the latent to.
- A crop is cut out of the latent around the largest nodule of the map, once. Beyond the border it holds the latent of
  background without noise; the public code takes another nodule instead.
- The scale of the latents is measured, weights are averaged, and times are spread evenly, as in `LDM`.

Shapes: b images, c channels, *s their axes; d latent channels, *z the axes of the latent.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, cat

from lit_medgen.batch import ABSENT_CLASS, Condition, DataSpec
from lit_medgen.diffusion import Denoiser
from lit_medgen.errors import InputError
from lit_medgen.methods.ldm import LDM
from lit_medgen.networks.protocols import LatentNetwork
from lit_medgen.training.first_stage import FirstStage
from lit_medgen.training.frozen import FrozenPart


class SemanticDenoiser(Denoiser):
    """A denoiser whose network reads the encoded label map, `condition.source`, beside the latent (eq. 3.3)."""

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The network's output, b d *z, from x_t: b d *z, joined with the encoded map where there is one."""
        return super().predict(x_t if condition.source is None else cat([x_t, condition.source], 1), t, condition)


class LSDM(LDM):
    """Latent semantic diffusion (Zu 2023).

    Args:
        network: `SemanticUNet`, which reads the label map by itself, or any other `LatentNetwork` with `concatenate`.
        first_stage: checkpoint of an `AutoencoderKL`, a `VQGAN` or another `FirstStage`.
        concatenate: whether the label map, as a grey image, passes the first stage's encoder and is joined to the
            network's input, which then has twice the latent's channels.
        others: as of `LDM`.
    """

    required = ("label_map",)
    denoiser_type = SemanticDenoiser

    def __init__(self, network: LatentNetwork, first_stage: str, concatenate: bool = False, **others: Any) -> None:
        super().__init__(network, first_stage, **others)
        make = "python -m lit_medgen fit --config configs/autoencoder_kl_ct.yaml"
        self.frozen_parts = {"first_stage": FrozenPart(Path(first_stage), FirstStage, make)}
        self.concatenate = concatenate
        if not (concatenate or hasattr(network, "num_classes")):
            raise ValueError(
                f"model.init_args.network: {type(network).__name__} reads no label map; give "
                "lit_medgen.networks.SemanticUNet, or set model.init_args.concatenate to true."
            )

    # What must fit together.

    def check_shape(self, shape: DataSpec) -> None:
        """InputError too for a network of another number of classes than the data's."""
        super().check_shape(shape)
        num = getattr(self.denoiser.network, "num_classes", len(shape.classes))
        if num != len(shape.classes):
            raise InputError(
                f"model.init_args.network.init_args.num_classes is {num}, but the label maps of the data have "
                f"{len(shape.classes)}: {', '.join(shape.classes)}; give {len(shape.classes)}."
            )

    def input_channels(self, latent_channels: int) -> int:
        """Channels that the network reads: those of the latent, and of the encoded label map if that is joined."""
        return latent_channels * (2 if self.concatenate else 1)

    # The label map.

    def scaled(self, condition: Condition) -> Condition:
        """What the network reads: the label map, with `concatenate` also encoded (as `source`), and covariates."""
        condition = super().scaled(condition)
        if condition.label_map is None:
            raise InputError("LSDM makes images from label maps: condition.label_map is missing.")
        return replace(condition, source=self.encoded(condition.label_map)) if self.concatenate else condition

    @torch.no_grad()
    def encoded(self, label_map: Tensor) -> Tensor:
        """E(m), b d *z, normalised as latents are: of the classes as grey values from -1 to 1; zeros of absent maps."""
        spec = self.first_stage.needed_spec()
        grey = 2 * label_map.clamp(min=0) / max(1, len(self.needed_spec().classes) - 1) - 1
        with torch.autocast(self.device.type, enabled=False):
            z = self.scale.normalise(self.first_stage.encode(grey.expand(-1, spec.channels, *grey.shape[2:])))
        absent = (label_map == ABSENT_CLASS).flatten(1).all(1)
        return z.masked_fill(absent.view(-1, *[1] * (z.ndim - 1)), 0)
