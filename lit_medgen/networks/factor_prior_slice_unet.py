"""The slice U-Net of `FactorPriorCDPM`, which also reads what the factor model expects of every slice."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_medgen.networks.slice_unet import SliceUNet


class FactorPriorSliceUNet(SliceUNet):
    """A slice U-Net that reads `condition.image` also where no slice is given: there it holds the factor model's mean.

    Its arguments are those of `SliceUNet`.
    """

    num_images = 2
    reads_prior = True

    def inputs(self, x: Tensor, image: Tensor, given: Tensor) -> Tensor:
        """The channels of every slice: those of `SliceUNet`, and the condition's image; b (2 c + 1) n y x."""
        return torch.cat([super().inputs(x, image, given), image], dim=1)
