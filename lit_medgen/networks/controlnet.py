"""ControlNet: a trainable copy of a U-Net's way down, which reads an image and steers the U-Net by it, in 2D and 3D.

Zhang, Rao, Agrawala. "Adding Conditional Control to Text-to-Image Diffusion Models". ICCV 2023, section 3. The copy
starts with the weights of the trained U-Net. Its features join those of the U-Net on their way to its skip connections
and middle, through convolutions that are zero at first, so that training begins with the U-Net as it was.

The source comes at the size of the image, which latents divide: convolutions bring it to the size of what the U-Net
reads. An absent source is one of zeros, and a channel says whether it is there.

Shapes: b batch, c channels, *s spatial axes of x, k channels of the source, *i its spatial axes, a multiple of *s.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from lit_medgen.batch import Condition
from lit_medgen.networks.blocks import conv, zero
from lit_medgen.networks.unet import UNet


class SourceEncoder(nn.Module):
    """Features of a source at the size and width of a U-Net's first convolution, zero at first (section 3.2).

    Args:
        dim: 2 or 3.
        in_channels: channels of the source.
        out_channels: channels of the result.
        channels: width at each size, the source's first; each further one halves it.
    """

    def __init__(self, dim: int, in_channels: int, out_channels: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([conv(dim, in_channels + 1, channels[0])])
        for before, after in itertools.pairwise(channels):
            self.layers += [conv(dim, before, before), conv(dim, before, after, stride=2)]
        self.out = zero(conv(dim, channels[-1], out_channels))

    def forward(self, source: Tensor) -> Tensor:
        """The features of sources b k *i, of which absent ones are NaN; -> b c *s."""
        there = ~source.flatten(1).isnan().any(1).view(-1, *[1] * (source.ndim - 1))
        h = torch.cat([source.masked_fill(~there, 0), there.to(source.dtype).expand_as(source[:, :1])], dim=1)
        for layer in self.layers:
            h = silu(layer(h))
        features: Tensor = self.out(h)
        return features


class Control(nn.Module):
    """What a source adds to the features of a U-Net.

    Args:
        unet: a trained U-Net, of whose way down and middle a copy is made.
        source_channels: channels of the source.
        channels: width of the source's encoder at each size; the last is that of what the U-Net reads.
    """

    def __init__(self, unet: UNet, source_channels: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.path = deepcopy(unet).requires_grad_(True)
        del self.path.up, self.path.norm_out, self.path.conv_out
        self.source = SourceEncoder(unet.dim, source_channels, unet.channels[0], channels)
        self.skips = nn.ModuleList([zero(conv(unet.dim, width, width, kernel=1)) for width in unet.skip_channels])
        self.middle = zero(conv(unet.dim, unet.channels[-1], unet.channels[-1], kernel=1))

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> tuple[list[Tensor], Tensor]:
        """What is added to each feature of the way down, and to the middle, for noisy x: b c *s at times t: b."""
        assert condition.source is not None
        embedding, *context = self.path.context(x, t, condition)
        h = self.path.begin(x) + self.source(condition.source.to(x.dtype))
        features, middle = self.path.descend(h, embedding, *context)
        return [skip(feature) for skip, feature in zip(self.skips, features, strict=True)], self.middle(middle)


class ControlledUNet(nn.Module):
    """A U-Net steered by `condition.source`; called as network(x, t, condition), as the U-Net is.

    Args:
        unet: the trained U-Net, whose weights this module neither trains nor keeps.
        source_channels: channels of the source.
        channels: width of the source's encoder at each size; the last is that of what the U-Net reads.
        scale: factor of what the source adds; 0 is the U-Net alone.
    """

    def __init__(self, unet: UNet, source_channels: int, channels: Sequence[int], scale: float = 1.0) -> None:
        super().__init__()
        self._unet = (unet,)  # in a tuple, as it belongs to another module, which keeps it
        self.control, self.scale = Control(unet, source_channels, channels), scale
        self.covariates = unet.covariates

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The prediction for noisy x: b c *s at times t: b; -> b c' *s."""
        (unet,) = self._unet
        embedding, *context = unet.context(x, t, condition)
        features, middle = unet.contract(x, embedding, *context)
        if condition.source is not None and self.scale != 0:
            added, centre = self.control(x, t, condition)
            features = [feature + self.scale * more for feature, more in zip(features, added, strict=True)]
            middle = middle + self.scale * centre
        return unet.expand(features, middle, embedding, *context)
