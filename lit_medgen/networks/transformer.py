"""The bidirectional transformer over code maps (Devlin et al. 2018; Bond-Taylor et al. 2022, appendix).

Every position of the map attends to every other. Each has a learned embedding of its own; the level of corruption and
the covariates have one that is added at all positions, and the tokens of the covariates stand before those of the map
(as in-context conditioning, Peebles & Xie 2023, section 3.2). Shapes: b batch, *z spatial axes of the map, p positions,
d channels of an embedded code, e width, k codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from lit_medgen.batch import Condition
from lit_medgen.networks.blocks import TimeEmbedding, attend
from lit_medgen.networks.conditioning import ConditionEncoder, Covariates


class CodeTransformer(nn.Module):
    """Transformer that gives the logits of the code at every position, from a map of codes or of embedded codes.

    Args:
        size: of the map, z.
        num_codes: K, codes that it names.
        channels: of an embedded code; 0: the input is codes, of which K stands for the mask.
        width: 512 in the paper.
        num_heads: 8 in the paper.
        num_layers: 24 in the paper.
        covariates: what it is told of an image; all else is ignored.
        dropout: after attention and in the perceptron.
    """

    def __init__(
        self,
        size: Sequence[int],
        num_codes: int,
        channels: int = 0,
        width: int = 512,
        num_heads: int = 8,
        num_layers: int = 24,
        covariates: Covariates | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.size, self.covariates = tuple(size), covariates or Covariates()
        self.embed: nn.Module = nn.Linear(channels, width) if channels else nn.Embedding(num_codes + 1, width)
        self.position = nn.Parameter(0.02 * torch.randn(*size, width))
        self.time = TimeEmbedding(width, width)
        self.blocks = nn.ModuleList([TransformerBlock(width, num_heads, dropout) for _ in range(num_layers)])
        self.norm_out = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_codes, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        self.encoder = ConditionEncoder(self.covariates, width) if self.covariates else None

    def forward(self, z: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Codes b *z, or embedded codes b d *z, at level t (b, in [0, 1]) -> logits b *z k."""
        embedded = self.embed(z.movedim(1, -1) if isinstance(self.embed, nn.Linear) else z)
        h, time = rearrange(embedded + self.position, "b ... e -> b (...) e"), self.time(t)
        mask: Tensor | None = None
        if self.encoder is None:
            h = h + time[:, None]
        else:
            covariates, tokens, mask = self.encoder(condition, len(z))
            h = torch.cat([tokens.to(h), h + (time + covariates)[:, None]], dim=1)
            mask = None if mask is None else functional.pad(mask, (0, h.shape[1] - mask.shape[1]), value=True)
        for block in self.blocks:
            h = block(h, mask)
        logits: Tensor = self.head(self.norm_out(h[:, -math.prod(self.size) :]))
        return logits.unflatten(1, self.size)


class TransformerBlock(nn.Module):
    """Self-attention, then a perceptron, each normalised first and around a skip connection."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"network.init_args.num_heads is {heads}, which does not divide width {width}.")
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        """The sequence after both branches, b p e -> b p e; b p, bool: which positions are attended to, None: all."""
        q, k, v = rearrange(self.qkv(self.norm1(h)), "b p (k h d) -> k b h p d", k=3, h=self.heads)
        dropout = self.dropout if self.training else 0.0
        mixed = attend(q, k, v, dropout, None if mask is None else mask[:, None, None])
        h = h + self.out(rearrange(mixed, "b h p d -> b p (h d)"))
        result: Tensor = h + self.perceptron(self.norm2(h))
        return result
