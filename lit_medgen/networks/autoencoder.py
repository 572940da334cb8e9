"""Encoder and decoder of a two-stage model, in 2D and 3D (Esser et al. 2021, "Taming Transformers", table 7).

Residual blocks at every level, attention at chosen levels and in the middle, a factor of two between levels. The
autoencoder of VQGAN and of latent diffusion alike. The code of both has convolutions of one voxel before and after the
bottleneck, linear maps next to linear maps, which are left out here. Shapes: b batch, c channels, *s spatial axes,
d latent channels, *z latent spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

from lit_medgen.networks.blocks import (
    Attention,
    ResidualBlock,
    conv,
    downsample,
    group_norm,
    one_for_each_level,
    upsample,
)
from lit_medgen.networks.slabs import in_slabs


class Layers(nn.Sequential):
    """Layers one after the other.

    Args:
        layers: b c *s -> b c' *s'.
        gradient_checkpointing: whether activations within a layer are computed again in the backward pass, not kept.
    """

    def __init__(self, layers: Sequence[nn.Module], gradient_checkpointing: bool = False) -> None:
        super().__init__(*layers)
        self.gradient_checkpointing = gradient_checkpointing

    def forward(self, x: Tensor) -> Tensor:
        """b c *s -> b c' *s'."""
        for layer in self:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False)  # nothing is random in them
            else:
                x = layer(x)
        return x


class Autoencoder(nn.Module):
    """An encoder to a latent map, and a decoder that mirrors it.

    Args:
        dim: 2 or 3.
        in_channels: channels of the image.
        latent_channels: channels of the latent map.
        channels: width of each level; every level but the last halves the size.
        attention: which levels have self-attention over their voxels.
        num_res_blocks: residual blocks per level of the encoder (one more in the decoder).
        head_channels: width of an attention head.
        middle_attention: whether there is self-attention between the two residual blocks in the middle.
        log_variance: whether the encoder gives a log-variance for each latent channel too, as `AutoencoderKL` needs.
        gradient_checkpointing: whether the activations within a layer are computed again in the backward pass: less
            memory, and about a third more time.
    """

    def __init__(
        self,
        dim: int = 2,
        in_channels: int = 1,
        latent_channels: int = 256,
        channels: Sequence[int] = (128, 128, 128, 256, 512),
        attention: Sequence[bool] = (False, False, False, False, True),
        num_res_blocks: int = 2,
        head_channels: int = 64,
        middle_attention: bool = True,
        log_variance: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        one_for_each_level(attention, channels)
        self.dim, self.in_channels, self.latent_channels = dim, in_channels, latent_channels
        self.encoded_channels = 2 * latent_channels if log_variance else latent_channels
        self.divisor = int(2 ** (len(channels) - 1))

        def stage(wide: int, narrow: int, attends: bool, num: int) -> list[nn.Module]:
            layers: list[nn.Module] = []
            for k in range(num):
                layers.append(ResidualBlock(dim, narrow if k else wide, narrow))
                layers += [Attention(narrow, head_channels)] if attends else []
            return layers

        def middle(width: int) -> list[nn.Module]:
            return [*stage(width, width, middle_attention, 1), ResidualBlock(dim, width, width)]

        encoder: list[nn.Module] = [conv(dim, in_channels, channels[0])]
        width = channels[0]
        for level, level_width in enumerate(channels):
            encoder += stage(width, level_width, attention[level], num_res_blocks)
            width = level_width
            encoder += [downsample(dim, width)] if level < len(channels) - 1 else []
        encoder += [*middle(width), group_norm(width), nn.SiLU(), conv(dim, width, self.encoded_channels)]
        decoder: list[nn.Module] = [conv(dim, latent_channels, width), *middle(width)]
        for level, level_width in reversed(list(enumerate(channels))):
            decoder += stage(width, level_width, attention[level], num_res_blocks + 1)
            width = level_width
            decoder += [upsample(dim, width)] if level else []
        self.encoder, self.decoder = (Layers(part, gradient_checkpointing) for part in (encoder, decoder))
        self.norm_out, self.conv_out = group_norm(width), conv(dim, width, in_channels)

    def encode(self, image: Tensor) -> Tensor:
        """The latent map of images, b c *s -> b d *z (with `log_variance` b 2d *z), every side divided by `divisor`."""
        latent: Tensor = self.encoder(image)
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        """The images of latent maps, b d *z -> b c *s."""
        image: Tensor = self.conv_out(silu(self.norm_out(self.decoder(latent))))
        return image

    def decode_in_slabs(self, latent: Tensor, thickness: int, storage: torch.device | str | None = None) -> Tensor:
        """The same images within 1e-5, for volumes whose feature maps do not fit; arguments: see `in_slabs`."""
        layers = nn.Sequential(self.decoder, self.norm_out, nn.SiLU(), self.conv_out)
        return in_slabs(layers, latent, thickness, storage)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the last convolution, at which VQGAN compares gradients (Esser et al. 2021, eq. 7)."""
        weight: nn.Parameter = self.conv_out.weight  # type: ignore[assignment]
        return weight
