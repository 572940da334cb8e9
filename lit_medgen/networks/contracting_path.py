"""The contracting path of a U-Net with its middle (Ronneberger et al. 2015; Ho et al. 2020, appendix B), in 2D and 3D.

What a U-Net and a classifier of noisy images share (Dhariwal & Nichol 2021, section 4: the classifier is the way down
of their U-Net). Shapes: b batch, c channels, *s spatial axes, e embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, channels_last, channels_last_3d, nn
from torch.utils.checkpoint import checkpoint

from lit_medgen.networks.blocks import (
    Attention,
    ResidualBlock,
    TimeEmbedding,
    conv,
    downsample,
    one_for_each_level,
)


class Step(nn.Module):
    """A residual block, then attention where there is any."""

    def __init__(self, block: ResidualBlock, attention: nn.Module | None = None) -> None:
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, h: Tensor, embedding: Tensor, *context: Any) -> Tensor:
        """The features after both; b c *s -> b c' *s."""
        h = self.block(h, embedding)
        return h if self.attention is None else self.attention(h, *context)


class ContractingPath(nn.Module):
    """Residual blocks at every level, attention at chosen levels and in the middle; a subclass says what follows.

    Args:
        dim: 2 or 3.
        in_channels: channels of x.
        channels: width of each level; every level but the last halves the size.
        attention: which levels have attention; the middle always has.
        num_res_blocks: residual blocks per level.
        head_channels: width of an attention head, or one for each level, of which the middle has the last.
        dropout: between the convolutions of a block.
        gradient_checkpointing: recompute blocks in the backward pass: less memory, about a third more time.
    """

    def __init__(
        self,
        dim: int,
        in_channels: int,
        channels: Sequence[int],
        attention: Sequence[bool],
        num_res_blocks: int,
        head_channels: int | Sequence[int],
        dropout: float,
        gradient_checkpointing: bool,
    ) -> None:
        super().__init__()
        one_for_each_level(attention, channels)
        heads = [head_channels] * len(channels) if isinstance(head_channels, int) else head_channels
        one_for_each_level(heads, channels, "head_channels")
        self.dim, self.channels, self.attention = dim, tuple(channels), tuple(attention)
        self.in_channels, self.dropout = in_channels, dropout
        self.head_channels, self.gradient_checkpointing = tuple(heads), gradient_checkpointing
        self.embedding_channels = 4 * channels[0]
        self.time = TimeEmbedding(channels[0], self.embedding_channels)
        self.conv_in = conv(dim, in_channels, channels[0])
        self.down, skips = nn.ModuleList(), [channels[0]]
        width = channels[0]
        for level, level_width in enumerate(channels):
            for _ in range(num_res_blocks):
                self.down.append(self.step(width, level_width, self.attend(level_width, level)))
                width = level_width
                skips.append(width)
            if level < len(channels) - 1:
                self.down.append(downsample(dim, width))
                skips.append(width)
        self.middle = nn.ModuleList([self.step(width, width, self.attend(width, None)), self.step(width, width, None)])
        self.skip_channels = tuple(skips)
        self.channels_last = channels_last if dim == 2 else channels_last_3d

    def step(self, in_channels: int, out_channels: int, attention: nn.Module | None) -> Step:
        """A residual block between these widths, followed by an attention module where there is one."""
        block = ResidualBlock(self.dim, in_channels, out_channels, self.embedding_channels, self.dropout)
        return Step(block, attention)

    def attend(self, channels: int, level: int | None) -> nn.Module | None:
        """The attention module of a block of so many channels at a level, or None; level None: the middle."""
        if level is not None and not self.attention[level]:
            return None
        return Attention(channels, self.head_channels[-1 if level is None else level])

    def call(self, block: nn.Module, h: Tensor, embedding: Tensor, *context: Any) -> Tensor:
        """The features after a block; only a `Step` reads the embedding and the context."""
        if not isinstance(block, Step):
            result: Tensor = block(h)
        elif self.gradient_checkpointing and self.training:
            result = checkpoint(block, h, embedding, *context, use_reentrant=False)
        else:
            result = block(h, embedding, *context)
        return result

    def contract(self, x: Tensor, embedding: Tensor, *context: Any) -> tuple[list[Tensor], Tensor]:
        """Features of the first convolution and of every block of the way down, in order, and those of the middle.

        Args:
            x: b c *s.
            embedding: b e, of the time and whatever joins it.
            context: what every step takes beside it; a `Step` gives it to its attention.
        """
        return self.descend(self.begin(x), embedding, *context)

    def begin(self, x: Tensor) -> Tensor:
        """The features of the first convolution; b c *s -> b c' *s."""
        # Tensor cores want channels last; on a CPU it makes the backward pass of GroupNorm several times slower.
        h: Tensor = self.conv_in(x.contiguous(memory_format=self.channels_last) if x.is_cuda else x)
        return h

    def descend(self, h: Tensor, embedding: Tensor, *context: Any) -> tuple[list[Tensor], Tensor]:
        """What `contract` gives, from the features of the first convolution, b c *s."""
        features = [h]
        for block in self.down:
            h = self.call(block, h, embedding, *context)
            features.append(h)
        for block in self.middle:
            h = self.call(block, h, embedding, *context)
        return features, h
