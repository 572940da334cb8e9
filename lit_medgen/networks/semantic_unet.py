r"""The U-Net of semantic image synthesis: a label map modulates every normalisation of the residual blocks.

Spatially-adaptive normalisation, SPADE (Park et al. 2019, eq. 1), as latent semantic diffusion has it in every residual
block of the way down, the middle and the way up; the semantic diffusion model of Wang et al. 2022 has it on the way up
alone. A group norm without weights of its own is followed by

    h <- norm(h) (1 + gamma(m)) + beta(m),

where gamma and beta, one number for each voxel and channel, are convolutions of the one-hot label map m at the size of
h. They are not normalised themselves: a map of a single class must modulate too. Both norms of a block read the same
hidden features of the map. The last convolution is zero-initialised, so that at first no map has an effect.

Maps come at the size of the image, which latents divide, and each level has a size of its own. They are brought to it
by max-pooling each class by itself, so that a nodule of one pixel is seen at every level, together with what is around
it. Zu's thesis (2023, section 3.3) pools the numbers of classes, of which the greater hides the others; its public code
takes one pixel of each window (`nearest`), and small nodules vanish at the coarser levels.

Shapes: b batch, c channels, k classes, *s spatial axes, e embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d, adaptive_max_pool3d, interpolate, relu

from lit_medgen.batch import Condition
from lit_medgen.networks.blocks import ResidualBlock, conv, group_norm, zero
from lit_medgen.networks.conditioning import Covariates
from lit_medgen.networks.contracting_path import Step
from lit_medgen.networks.unet import UNet

Pyramid = Mapping[tuple[int, ...], Tensor]
"""Spatial size -> the one-hot label map at that size, b k *s."""


def one_hot(label_map: Tensor, num_classes: int) -> Tensor:
    """A channel of zeros and ones for each class, b 1 *s -> b k *s, bool; zeros for what is none (`ABSENT_CLASS`).

    Classes that are not below k are refused where data and requests are checked, as looking here waits for the device.
    """
    classes = torch.arange(num_classes, device=label_map.device)
    return label_map == classes.view(-1, *[1] * (label_map.ndim - 2))


def pooled(hot: Tensor, size: Sequence[int], kind: Literal["max", "nearest"]) -> Tensor:
    """One-hot maps brought to a smaller size: which classes are in each window, or which is at its first voxel."""
    if tuple(hot.shape[2:]) == tuple(size):
        return hot
    if kind == "nearest":
        return interpolate(hot, tuple(size), mode="nearest")
    return (adaptive_max_pool2d if hot.ndim == 4 else adaptive_max_pool3d)(hot, tuple(size))


class Modulation(nn.Module):
    """The scales and shifts that a label map gives several normalisations (Park et al. 2019, figure 2).

    Args:
        dim: 2 or 3.
        num_classes: channels of the one-hot map.
        hidden_channels: width between its two convolutions.
        channels: of each normalisation's features.
    """

    def __init__(self, dim: int, num_classes: int, hidden_channels: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.hidden = conv(dim, num_classes, hidden_channels)
        self.out = zero(conv(dim, hidden_channels, 2 * sum(channels)))
        self.sizes = [width for width in channels for _ in range(2)]

    def forward(self, hot: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Scale gamma and shift beta, b c *s each, for each normalisation, from one-hot maps b k *s."""
        parts = self.out(relu(self.hidden(hot))).split(self.sizes, dim=1)
        return list(zip(parts[::2], parts[1::2], strict=True))


class SemanticBlock(ResidualBlock):
    """A residual block whose normalisations are modulated by a label map.

    Args:
        dim: 2 or 3.
        in_channels: channels of its input.
        out_channels: channels of its output.
        num_classes: channels of the one-hot map.
        modulation_channels: hidden channels of the modulation.
        embedding: width of the embedding; 0: none.
        dropout: between the convolutions.
    """

    def __init__(
        self,
        dim: int,
        in_channels: int,
        out_channels: int,
        num_classes: int,
        modulation_channels: int,
        embedding: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(dim, in_channels, out_channels, embedding, dropout)
        self.norm1, self.norm2 = group_norm(in_channels, affine=False), group_norm(out_channels, affine=False)
        self.modulation = Modulation(dim, num_classes, modulation_channels, (in_channels, out_channels))

    def modulated(self, x: Tensor, embedding: Tensor | None, hot: Tensor) -> Tensor:
        """The block's output for features b c *s, an embedding b e and one-hot maps b k *s; -> b c' *s."""

        def spade(norm: nn.Module, gamma: Tensor, beta: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda h: norm(h) * (1 + gamma) + beta

        first, second = self.modulation(hot)
        return self.transform(x, embedding, spade(self.norm1, *first), spade(self.norm2, *second))


class SemanticStep(Step):
    """A modulated residual block, then attention where there is any."""

    block: SemanticBlock

    def forward(self, h: Tensor, embedding: Tensor, *context: Any) -> Tensor:
        """The features after both, b c *s -> b c' *s; the context begins with the pyramid of the label map."""
        pyramid, *tokens = context
        h = self.block.modulated(h, embedding, pyramid[_sides(h)])
        return h if self.attention is None else self.attention(h, *tokens)


class SemanticUNet(UNet):
    """U-Net called as network(x, t, condition), modulated by `condition.label_map` in every residual block.

    Without a map, and for rows that are `ABSENT_CLASS` everywhere, its one-hot map is zero, which is learned as the
    null condition of guidance (Wang et al. 2022, section 3.3).

    Args:
        num_classes: classes of the label map.
        modulation_channels: hidden channels of each block's modulation. Half of a level's width costs there as much as
            the block's own convolutions; 128 is the paper's.
        pyramid: how maps come to the size of a level.
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
        covariates: what it is told of an image beside the map.
        cross_attention: whether it attends to the covariates wherever it has attention; their sum joins the embedding
            of the time in any case.
    """

    def __init__(
        self,
        num_classes: int,
        modulation_channels: int = 128,
        pyramid: Literal["max", "nearest"] = "max",
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
        for name, value in (("num_classes", num_classes), ("modulation_channels", modulation_channels)):
            if value < 1:
                raise ValueError(f"network.init_args.{name} is {value}; give at least 1.")
        if pyramid not in ("max", "nearest"):
            raise ValueError(f"network.init_args.pyramid is {pyramid!r}; give max or nearest.")
        self.num_classes, self.modulation_channels, self.pyramid = num_classes, modulation_channels, pyramid
        super().__init__(
            dim,
            in_channels,
            out_channels,
            channels,
            attention,
            num_res_blocks,
            head_channels,
            dropout,
            gradient_checkpointing,
            covariates,
            cross_attention,
        )

    def step(self, in_channels: int, out_channels: int, attention: nn.Module | None) -> Step:
        """A modulated residual block between these widths, followed by an attention module where there is one."""
        modulation = (self.num_classes, self.modulation_channels)
        block = SemanticBlock(self.dim, in_channels, out_channels, *modulation, self.embedding_channels, self.dropout)
        return SemanticStep(block, attention)

    def context(self, x: Tensor, t: Tensor, condition: Condition | None) -> tuple[Any, ...]:
        """What `run` takes beside x: the embedding, b e, then the pyramid of the label map, and tokens.

        Args:
            x: b c *s, noisy images.
            t: b, times in [0, 1].
            condition: gives label_map, b 1 *s', integer classes, along each axis at least as large as x.

        Raises:
            ValueError: the label map is of another number of axes or images, or smaller than x.
        """
        embedding, *tokens = self.embed(t, condition)
        return embedding, self.maps(x, condition.label_map if condition else None), *tokens

    def maps(self, x: Tensor, label_map: Tensor | None) -> Pyramid:
        """One-hot label maps at the size of every level, for images x: b c *s."""
        size = _sides(x)
        if label_map is None:
            hot = x.new_zeros(len(x), self.num_classes, *size)
        else:
            _check(label_map, x)
            hot = one_hot(label_map, self.num_classes).to(x.dtype)
        pyramid: dict[tuple[int, ...], Tensor] = {}
        for _ in self.channels:
            pyramid[size] = pooled(hot, size, self.pyramid)
            size = tuple(-(-side // 2) for side in size)  # as a convolution of stride 2 leaves it
        return pyramid


def _sides(x: Tensor) -> tuple[int, ...]:
    """The size of images b c *s; whole numbers, also where tracing has tensors of them."""
    return tuple(int(side) for side in x.shape[2:])


def _check(label_map: Tensor, x: Tensor) -> None:
    """ValueError unless a label map can be brought to the size of images by pooling."""
    fits = label_map.ndim == x.ndim and label_map.shape[:2] == (len(x), 1)
    if not fits or any(side < least for side, least in zip(label_map.shape[2:], x.shape[2:], strict=True)):
        raise ValueError(
            f"a label map of {tuple(label_map.shape)} for images of {tuple(x.shape)}; give one channel for each of "
            f"{len(x)} images, {x.ndim - 2} axes, and along each at least as many voxels."
        )
