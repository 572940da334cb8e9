"""Building blocks shared by every network, in 2D and 3D.

Shapes: b batch, c channels, *s spatial axes, e embedding, p positions in space, h heads, d channels
of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional


def conv(dim: int, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    """A convolution in `dim` dimensions that keeps the size (divided by the stride)."""
    kind = {2: nn.Conv2d, 3: nn.Conv3d}[dim]
    return kind(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2)


def group_norm(channels: int, affine: bool = True) -> nn.GroupNorm:
    """Group normalisation with 32 groups, or as many as leave at least two channels in each.

    A group of one channel would subtract the embedding that a residual block has just added to it.
    """
    return nn.GroupNorm(math.gcd(32, max(1, channels // 2)), channels, eps=1e-6, affine=affine)


def zero(module: nn.Module) -> nn.Module:
    """Zero-initialised, so that a residual branch starts as the identity (Ho et al. 2020's code)."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def sinusoid(position: Tensor, channels: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal features of a position (Vaswani et al. 2017, section 3.5): * -> * channels, float32."""
    half = channels // 2
    frequency = torch.exp(-math.log(max_period) * torch.arange(half, device=position.device) / half)
    angle = position.float()[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class TimeEmbedding(nn.Sequential):
    """Time in [0, 1] to an embedding: sinusoid of 1000 t, then a two-layer perceptron (Ho et al. 2020)."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__(nn.Linear(channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.channels = channels

    def forward(self, t: Tensor) -> Tensor:
        """The embedding of each image's time; b -> b e."""
        features = sinusoid(1000 * t, self.channels).to(next(self.parameters()).dtype)
        return super().forward(features)


class ResidualBlock(nn.Module):
    """Two normalised convolutions with the embedding, if there is one, added between them, around a skip connection."""

    def __init__(self, dim: int, in_channels: int, out_channels: int, embedding: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = conv(dim, in_channels, out_channels)
        self.embed = nn.Linear(embedding, out_channels) if embedding else None
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero(conv(dim, out_channels, out_channels))
        self.skip = nn.Identity() if in_channels == out_channels else conv(dim, in_channels, out_channels, kernel=1)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """The block's output for features b c *s and an embedding b e; -> b c' *s."""
        return self.transform(x, embedding, self.norm1, self.norm2)

    def transform(
        self, x: Tensor, embedding: Tensor | None, norm1: Callable[[Tensor], Tensor], norm2: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The block's output with these normalisations before its convolutions."""
        h = self.conv1(functional.silu(norm1(x)))
        if self.embed is not None and embedding is not None:
            shift = self.embed(functional.silu(embedding))
            h = h + shift.view(*shift.shape, *[1] * (x.ndim - 2))
        return self.skip(x) + self.conv2(self.dropout(functional.silu(norm2(h))))


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, mask: Tensor | None = None) -> Tensor:
    """Attention, softmax(q k^T / sqrt(d)) v; each of q, k and v is ... p d (Vaswani et al. 2017, eq. 1).

    Args:
        q: queries.
        k: keys.
        v: values.
        dropout: share of the weights that are left out.
        mask: bool, shaped to broadcast to the weights, ... p p': which keys a query attends to; None: all.
    """
    if q.dtype != torch.bfloat16 or q.device.type != "cpu":
        return functional.scaled_dot_product_attention(q, k, v, mask, dropout)
    with torch.autocast("cpu", enabled=False):  # a CPU takes four times longer over it in bfloat16
        return functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask, dropout)


class Attention(nn.Module):
    """Multi-head self-attention over all positions of an image, around a skip connection."""

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        self.heads = num_heads(channels, head_channels)
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """The image after attention; b c *s -> b c *s."""
        sequence = rearrange(self.norm(x), "b c ... -> b (...) c")
        q, k, v = rearrange(self.qkv(sequence), "b p (k h d) -> k b h p d", k=3, h=self.heads)
        mixed = attend(q, k, v)
        return x + rearrange(self.out(rearrange(mixed, "b h p d -> b p (h d)")), "b p c -> b c p").view(x.shape)


class CrossAttention(nn.Module):
    """Multi-head attention of all positions of an image to tokens, around a skip connection (Rombach et al. 2022, 3.3).

    Args:
        channels: of the image's features.
        head_channels: width of an attention head.
        token_channels: width of a token.
    """

    def __init__(self, channels: int, head_channels: int, token_channels: int) -> None:
        super().__init__()
        self.heads = num_heads(channels, head_channels)
        self.norm = group_norm(channels)
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(token_channels, 2 * channels)
        self.out = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """The image after attention to tokens b n e, of which b n, bool, are no padding; b c *s -> b c *s."""
        q = rearrange(self.q(rearrange(self.norm(x), "b c ... -> b (...) c")), "b p (h d) -> b h p d", h=self.heads)
        k, v = rearrange(self.kv(tokens), "b n (k h d) -> k b h n d", k=2, h=self.heads)
        mixed = attend(q, k, v, mask=None if mask is None else mask[:, None, None])
        return x + rearrange(self.out(rearrange(mixed, "b h p d -> b p (h d)")), "b p c -> b c p").view(x.shape)


class SelfAndCrossAttention(nn.Module):
    """Attention of an image's positions to each other, then to tokens.

    The residual blocks around it stand for the perceptron of a transformer's block.
    """

    def __init__(self, within: Attention, across: CrossAttention) -> None:
        super().__init__()
        self.within, self.across = within, across

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """The image after both; b c *s -> b c *s."""
        result: Tensor = self.across(self.within(x), tokens, mask)
        return result


def downsample(dim: int, channels: int) -> nn.Module:
    """Halves the size by a convolution of stride 2: b c *s -> b c *s/2."""
    return conv(dim, channels, channels, stride=2)


def upsample(dim: int, channels: int) -> nn.Module:
    """Doubles the size by nearest neighbours and a convolution: b c *s -> b c 2*s."""
    return nn.Sequential(nn.Upsample(scale_factor=2.0, mode="nearest"), conv(dim, channels, channels))


def one_for_each_level(entries: Sequence[float], channels: Sequence[int], name: str = "attention") -> None:
    """ValueError unless there is an entry of the argument `name` for each level's width."""
    if len(entries) != len(channels):
        raise ValueError(
            f"network.init_args.{name} has {len(entries)} entries and channels has {len(channels)}; "
            "give one for each level."
        )


def num_heads(channels: int, head_channels: int) -> int:
    """Number of attention heads of a width, one where there are fewer channels; ValueError unless it divides them."""
    if channels < head_channels:
        return 1
    if head_channels < 1 or channels % head_channels:
        raise ValueError(
            f"network.init_args.head_channels is {head_channels}, which does not divide {channels} channels."
        )
    return channels // head_channels
