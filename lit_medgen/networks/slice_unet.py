r"""The slice U-Net of cDPM: a 2D U-Net over a set of slices that attends across them.

Peng et al. 2023 (section 2.2) feed the index sets C (condition) and P (target) with their slices into an
attention network with relative positions (Shaw et al. 2018). The sizes follow the video model that the
authors' own port builds on (Harvey et al. 2022, "Flexible Diffusion Modeling of Long Videos", section 4):

* condition slices enter clean and target slices noisy; one more channel says which is which;
* at each position of the plane, slices attend to each other. From the distance d of two slices, in slices,

      R = W_out SiLU(W_d [log(1 + max(d, 0)), log(1 + max(-d, 0)), d = 0] + W_t embedding(t))

  gives three vectors, added to queries, keys and values:

      logit_ij = (q_i k_j + q_i R^k_ij + k_j R^q_ij) / sqrt(dim),   out_i = sum_j softmax_ij (v_j + R^v_ij);

* then each slice attends within itself.

A relative position alone cannot tell the top of a head from its bottom when nothing is given yet, so the
absolute index may be added to the time embedding (`absolute_position`; neither paper nor port has it). Covariates are
added there too: all slices of a set are of one person.

Shapes: b volumes, n slices of a set, c channels, y x the plane, p its positions, h heads, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn.functional import silu

from lit_medgen.batch import PADDING, Condition
from lit_medgen.networks.blocks import TimeEmbedding, group_norm, num_heads, one_for_each_level, zero
from lit_medgen.networks.conditioning import Covariates
from lit_medgen.networks.unet import UNet


@dataclass
class SliceContext:
    """What attention across slices needs: relative positions, which slices may attend to each other, and the time.

    Attributes:
        distance: b n n 3, features of the signed distance from slice j to slice i.
        may_attend: b n n, bool: both are slices, or both are padding.
        embedding: b e, of the time and of the covariates.
    """

    distance: Tensor
    may_attend: Tensor
    embedding: Tensor

    @classmethod
    def of(cls, slice_index: Tensor, embedding: Tensor) -> SliceContext:
        """From slice indices b n (`PADDING` where there is none) and the time embedding b e."""
        real = slice_index != PADDING
        d = (slice_index[:, :, None] - slice_index[:, None, :]).float()
        features = torch.stack([d.clamp(min=0).log1p(), (-d).clamp(min=0).log1p(), (d == 0).float()], dim=-1)
        return cls(features.to(embedding.dtype), real[:, :, None] == real[:, None, :], embedding)


class SliceAttention(nn.Module):
    """Attention across the slices of a set, at every position of the plane by itself."""

    def __init__(self, channels: int, head_channels: int, embedding: int) -> None:
        super().__init__()
        self.heads = num_heads(channels, head_channels)
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.distance = nn.Linear(3, channels)
        self.time = nn.Linear(embedding, channels)
        self.relative = zero(nn.Linear(channels, 3 * channels))
        self.out = zero(nn.Linear(channels, channels))

    def positions(self, context: SliceContext) -> Tensor:
        """3 b h i j d: the relative vectors of queries, keys and values."""
        hidden = self.distance(context.distance) + self.time(context.embedding)[:, None, None]
        return rearrange(self.relative(silu(hidden)), "b i j (k h d) -> k b h i j d", k=3, h=self.heads)

    def forward(self, h: Tensor, context: SliceContext) -> Tensor:
        """(b n) c y x -> (b n) c y x."""
        b = len(context.may_attend)
        normed = rearrange(self.norm(h), "(b n) c y x -> b (y x) n c", b=b)
        q, k, v = rearrange(self.qkv(normed), "b p n (k h d) -> k b h p n d", k=3, h=self.heads)
        relative_q, relative_k, relative_v = self.positions(context)
        # The relative value needs the attention weights themselves, so this is written out rather than left to
        # scaled_dot_product_attention; n is at most tau_max = 20, and the n x n weights stay small.
        logits = (
            q @ k.mT
            + torch.einsum("bhpid,bhijd->bhpij", q, relative_k)
            + torch.einsum("bhpjd,bhijd->bhpij", k, relative_q)
        ) * q.shape[-1] ** -0.5
        weights = logits.masked_fill(~context.may_attend[:, None, None], float("-inf")).softmax(dim=-1).to(v.dtype)
        mixed = weights @ v + torch.einsum("bhpij,bhijd->bhpid", weights, relative_v)
        out = self.out(rearrange(mixed, "b h p n d -> b p n (h d)"))
        y, x = h.shape[-2:]
        return h + rearrange(out, "b (y x) n c -> (b n) c y x", y=y, x=x)


class SliceAndPlaneAttention(nn.Module):
    """Attention across slices, then within each slice; one of them may be None."""

    def __init__(self, across: SliceAttention | None, within: nn.Module | None) -> None:
        super().__init__()
        self.across, self.within = across, within

    def forward(self, h: Tensor, context: SliceContext) -> Tensor:
        """(b n) c y x -> (b n) c y x."""
        if self.across is not None:
            h = self.across(h, context)
        return h if self.within is None else self.within(h)


class SliceUNet(UNet):
    """2D U-Net over sets of slices, called as network(x, t, condition) with x: b c n y x.

    Args:
        channels: width of each level; every level but the last halves the plane.
        slice_attention: which levels attend across slices; the middle always does.
        attention: which levels attend within each slice; the middle always does.
        num_res_blocks: residual blocks per level on the way down (one more on the way up).
        head_channels: width of an attention head; or one for each level, of which the middle has the last.
        dropout: between the convolutions of a block.
        absolute_position: add the slice's index to the time embedding.
        image_channels: channels of a slice.
        gradient_checkpointing: recompute blocks in the backward pass: less memory, about a third more time.
        covariates: what it is told of the volume; their sum joins the time embedding. All else is ignored.
    """

    num_images = 1
    """Images of every slice among the input channels; `inputs` of a subclass may add more."""

    def __init__(
        self,
        channels: Sequence[int] = (128, 128, 256, 512),
        slice_attention: Sequence[bool] = (False, False, True, True),
        attention: Sequence[bool] = (False, False, True, True),
        num_res_blocks: int = 2,
        head_channels: int | Sequence[int] = 64,
        dropout: float = 0.0,
        absolute_position: bool = True,
        image_channels: int = 1,
        gradient_checkpointing: bool = False,
        covariates: Covariates | None = None,
    ) -> None:
        one_for_each_level(slice_attention, channels, "slice_attention")
        self.slice_attention = tuple(slice_attention)
        super().__init__(
            dim=2,
            in_channels=image_channels * self.num_images + 1,
            out_channels=image_channels,
            channels=channels,
            attention=attention,
            num_res_blocks=num_res_blocks,
            head_channels=head_channels,
            dropout=dropout,
            gradient_checkpointing=gradient_checkpointing,
            covariates=covariates,
            cross_attention=False,
        )
        self.position = TimeEmbedding(channels[0], 4 * channels[0]) if absolute_position else None

    @property
    def divisor(self) -> int:
        """The number that both sides of a slice must be a multiple of."""
        return int(2 ** (len(self.channels) - 1))

    def attend(self, channels: int, level: int | None) -> nn.Module | None:
        """Attention across slices and within them where the level has them, both in the middle; None for neither."""
        across = None
        if level is None or self.slice_attention[level]:
            across = SliceAttention(channels, self.head_channels[-1 if level is None else level], 4 * self.channels[0])
        within = super().attend(channels, level)
        return SliceAndPlaneAttention(across, within) if across or within else None

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """The prediction for every slice of a set, given ones included: b c n y x.

        Args:
            x: b c n y x, noisy slices.
            t: b, times in [0, 1].
            condition: gives slice_index (b n), observed (b n) and image (b c n y x), read where observed; attributes
                and text as the covariates name them.

        Raises:
            ValueError: the condition has no slice_index.
        """
        if condition is None or condition.slice_index is None:
            raise ValueError("SliceUNet needs condition.slice_index: the number of each slice of the set.")
        b, _, n = x.shape[:3]
        slice_index = condition.slice_index
        observed = condition.observed if condition.observed is not None else torch.zeros_like(slice_index).bool()
        image = condition.image.to(x.dtype) if condition.image is not None else torch.zeros_like(x)
        x = self.inputs(x, image, rearrange(observed, "b n -> b 1 n 1 1"))
        (embedding,) = self.embed(t, condition)
        slice_embedding = repeat(embedding, "b e -> (b n) e", n=n)
        if self.position is not None:
            # TimeEmbedding multiplies by 1000; an index enters as it is.
            slice_embedding = slice_embedding + self.position(slice_index.flatten() / 1000)
        h = self.run(rearrange(x, "b c n y x -> (b n) c y x"), slice_embedding, SliceContext.of(slice_index, embedding))
        return rearrange(h, "(b n) c y x -> b c n y x", b=b)

    def inputs(self, x: Tensor, image: Tensor, given: Tensor) -> Tensor:
        """The channels of every slice: it as it is given or noisy, and whether it is given; b (c + 1) n y x.

        Args:
            x: b c n y x, noisy slices.
            image: b c n y x, `condition.image`.
            given: b 1 n 1 1, bool.
        """
        return torch.cat([torch.where(given, image, x), given.expand_as(x[:, :1]).to(x.dtype)], dim=1)
