"""The U-Net of denoising diffusion (Ho et al. 2020, appendix B), in 2D and 3D.

Residual blocks at every level, self-attention at chosen levels and in the middle, a skip connection from every
block of the way down to its twin on the way up. An odd side is halved upwards, and its double is cut to the size of
the twin, so that images may have any size. Covariates join the embedding of the time, and are attended to after
self-attention (Rombach et al. 2022, section 3.3). Shapes: b batch, c channels, *s spatial axes, e embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, cat, channels_last, channels_last_3d, nn
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

from lit_medgen.batch import Condition
from lit_medgen.networks.blocks import (
    Attention,
    CrossAttention,
    ResidualBlock,
    SelfAndCrossAttention,
    TimeEmbedding,
    conv,
    downsample,
    group_norm,
    one_for_each_level,
    upsample,
    zero,
)
from lit_medgen.networks.conditioning import ConditionEncoder, Covariates


class UNet(nn.Module):
    """U-Net called as unet(x, t, condition); its output has the spatial size of x.

    Args:
        dim: 2 or 3.
        in_channels: channels of x.
        out_channels: channels of the result.
        channels: width of each level; every level but the last halves the size.
        attention: which levels have attention; the middle always has.
        num_res_blocks: residual blocks per level on the way down (one more on the way up).
        head_channels: width of an attention head, or one for each level, of which the middle has the last; a level that
            is narrower has a single head.
        dropout: between the convolutions of a block.
        gradient_checkpointing: recompute blocks in the backward pass: less memory, about a third more time.
        covariates: what it is told of an image; all else is ignored.
        cross_attention: whether it attends to the covariates wherever it has attention; their sum joins the embedding
            of the time in any case.
    """

    def __init__(
        self,
        dim: int = 2,
        in_channels: int = 1,
        out_channels: int = 1,
        channels: Sequence[int] = (64, 128, 256),
        attention: Sequence[bool] = (False, False, True),
        num_res_blocks: int = 2,
        head_channels: int | Sequence[int] = 32,
        dropout: float = 0.0,
        gradient_checkpointing: bool = False,
        covariates: Covariates | None = None,
        cross_attention: bool = True,
    ) -> None:
        super().__init__()
        one_for_each_level(attention, channels)
        heads = [head_channels] * len(channels) if isinstance(head_channels, int) else head_channels
        one_for_each_level(heads, channels, "head_channels")
        self.dim, self.channels, self.attention = dim, tuple(channels), tuple(attention)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.head_channels, self.gradient_checkpointing = tuple(heads), gradient_checkpointing
        self.covariates = covariates or Covariates()
        self.cross_attention = cross_attention and bool(self.covariates)
        self.embedding_channels = embedding = 4 * channels[0]
        self.time = TimeEmbedding(channels[0], embedding)
        self.conv_in = conv(dim, in_channels, channels[0])

        def step(wide: int, narrow: int, level: int | None) -> Step:
            attention = self.attend(narrow, level)
            return Step(ResidualBlock(dim, wide, narrow, embedding, dropout), attention)

        self.down, skips = nn.ModuleList(), [channels[0]]
        width = channels[0]
        for level, level_width in enumerate(channels):
            for _ in range(num_res_blocks):
                self.down.append(step(width, level_width, level))
                width = level_width
                skips.append(width)
            if level < len(channels) - 1:
                self.down.append(downsample(dim, width))
                skips.append(width)
        self.middle = nn.ModuleList(
            [step(width, width, None), Step(ResidualBlock(dim, width, width, embedding, dropout))]
        )
        self.up = nn.ModuleList()
        for level, level_width in reversed(list(enumerate(channels))):
            for _ in range(num_res_blocks + 1):
                self.up.append(step(width + skips.pop(), level_width, level))
                width = level_width
            if level > 0:
                self.up.append(upsample(dim, width))
        self.norm_out = group_norm(width)
        self.conv_out = zero(conv(dim, width, out_channels))
        self.channels_last = channels_last if dim == 2 else channels_last_3d
        self.encoder = ConditionEncoder(self.covariates, embedding) if self.covariates else None

    def attend(self, channels: int, level: int | None) -> nn.Module | None:
        """The attention module of a block of so many channels at a level, or None; level None: the middle."""
        if level is not None and not self.attention[level]:
            return None
        width = self.head_channels[-1 if level is None else level]
        within = Attention(channels, width)
        if not self.cross_attention:
            return within
        return SelfAndCrossAttention(within, CrossAttention(channels, width, self.embedding_channels))

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """The prediction for noisy images x: b c *s at times t: b; -> b c' *s."""
        if self.encoder is None:
            return self.run(x, self.time(t))
        embedding, *tokens = self.encoder(condition, len(x))
        return self.run(x, self.time(t) + embedding, *(tokens if self.cross_attention else ()))

    def run(self, x: Tensor, embedding: Tensor, *context: Any) -> Tensor:
        """The network without its interface; attention is called as attention(h, *context)."""

        def call(block: nn.Module, h: Tensor) -> Tensor:
            if not isinstance(block, Step):
                return block(h)
            if self.gradient_checkpointing and self.training:
                return checkpoint(block, h, embedding, *context, use_reentrant=False)
            return block(h, embedding, *context)

        # Tensor cores want channels last; on a CPU it makes the backward pass of GroupNorm several times slower.
        h = self.conv_in(x.contiguous(memory_format=self.channels_last) if x.is_cuda else x)
        skips = [h]
        for block in self.down:
            h = call(block, h)
            skips.append(h)
        for block in self.middle:
            h = call(block, h)
        for block in self.up:
            h = call(block, joined(h, skips.pop()) if isinstance(block, Step) else h)
        return self.conv_out(silu(self.norm_out(h)))


def joined(h: Tensor, skip: Tensor) -> Tensor:
    """Features of the way up, cut to the size of their twins of the way down, with these as further channels."""
    for axis, side in enumerate(skip.shape[2:], start=2):
        h = h.narrow(axis, 0, side)
    return cat([h, skip], dim=1)


class Step(nn.Module):
    """A residual block, then attention where there is any."""

    def __init__(self, block: ResidualBlock, attention: nn.Module | None = None) -> None:
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, h: Tensor, embedding: Tensor, *context: Any) -> Tensor:
        """The features after both; b c *s -> b c' *s."""
        h = self.block(h, embedding)
        return h if self.attention is None else self.attention(h, *context)
