"""The U-Net of denoising diffusion (Ho et al. 2020, appendix B), in 2D and 3D.

Residual blocks at every level, self-attention at chosen levels and in the middle, a skip connection from every
block of the way down to its twin on the way up. An odd side is halved upwards, and its double is cut to the size of
the twin, so that images may have any size. Covariates join the embedding of the time, and are attended to after
self-attention (Rombach et al. 2022, section 3.3). Shapes: b batch, c channels, *s spatial axes, e embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, cat, nn
from torch.nn.functional import silu

from lit_medgen.batch import Condition
from lit_medgen.networks.blocks import (
    Attention,
    CrossAttention,
    SelfAndCrossAttention,
    conv,
    group_norm,
    upsample,
    zero,
)
from lit_medgen.networks.conditioning import ConditionEncoder, Covariates
from lit_medgen.networks.contracting_path import ContractingPath, Step


class UNet(ContractingPath):
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
        self.covariates = covariates or Covariates()
        self.cross_attention = cross_attention and bool(self.covariates)
        super().__init__(
            dim, in_channels, channels, attention, num_res_blocks, head_channels, dropout, gradient_checkpointing
        )
        self.out_channels = out_channels
        self.up, skips, width = nn.ModuleList(), list(self.skip_channels), channels[-1]
        for level, level_width in reversed(list(enumerate(channels))):
            for _ in range(num_res_blocks + 1):
                self.up.append(self.step(width + skips.pop(), level_width, self.attend(level_width, level)))
                width = level_width
            if level > 0:
                self.up.append(upsample(dim, width))
        self.norm_out = group_norm(width)
        self.conv_out = zero(conv(dim, width, out_channels))
        self.encoder = ConditionEncoder(self.covariates, self.embedding_channels) if self.covariates else None

    def attend(self, channels: int, level: int | None) -> nn.Module | None:
        """The attention module of a block of so many channels at a level, or None; level None: the middle."""
        within = super().attend(channels, level)
        if not self.cross_attention or not isinstance(within, Attention):
            return within
        width = self.head_channels[-1 if level is None else level]
        return SelfAndCrossAttention(within, CrossAttention(channels, width, self.embedding_channels))

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """The prediction for noisy images x: b c *s at times t: b; -> b c' *s."""
        return self.run(x, *self.context(x, t, condition))

    def context(self, x: Tensor, t: Tensor, condition: Condition | None) -> tuple[Any, ...]:
        """What `run` takes beside x: the embedding, b e, and what every step takes."""
        return self.embed(t, condition)

    def embed(self, t: Tensor, condition: Condition | None) -> tuple[Any, ...]:
        """The embedding of times t: b and covariates, b e; with cross-attention their tokens and which are padding."""
        if self.encoder is None:
            return (self.time(t),)
        embedding, *tokens = self.encoder(condition, len(t))
        return self.time(t) + embedding, *(tokens if self.cross_attention else ())

    def run(self, x: Tensor, embedding: Tensor, *context: Any) -> Tensor:
        """The network without its interface; attention is called as attention(h, *context)."""
        return self.expand(*self.contract(x, embedding, *context), embedding, *context)

    def expand(self, features: Sequence[Tensor], h: Tensor, embedding: Tensor, *context: Any) -> Tensor:
        """The prediction, b c' *s, from what `contract` gives: the features of the way down, and of the middle."""
        skips = list(features)
        for block in self.up:
            h = self.call(block, joined(h, skips.pop()) if isinstance(block, Step) else h, embedding, *context)
        return self.conv_out(silu(self.norm_out(h)))


def joined(h: Tensor, skip: Tensor) -> Tensor:
    """Features of the way up, cut to the size of their twins of the way down, with these as further channels."""
    for axis, side in enumerate(skip.shape[2:], start=2):
        h = h.narrow(axis, 0, side)
    return cat([h, skip], dim=1)
