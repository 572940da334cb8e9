"""The bidirectional transformer over code maps (Devlin et al. 2018; Bond-Taylor et al. 2022, appendix).

Every position of the map attends to every other. Each has a learned embedding of its own; the level of corruption and
the attributes have one that is added at all positions. Shapes: b batch, *z spatial axes of the map, p positions, d
channels of an embedded code, e width, k codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from lit_medgen.batch import Condition
from lit_medgen.networks.blocks import TimeEmbedding, attend


class CodeTransformer(nn.Module):
    """Transformer that gives the logits of the code at every position, from a map of codes or of embedded codes.

    Args:
        size: of the map, z.
        num_codes: K, codes that it names.
        channels: of an embedded code; 0: the input is codes, of which K stands for the mask.
        width: 512 in the paper.
        num_heads: 8 in the paper.
        num_layers: 24 in the paper.
        attributes: names of the attributes that it reads; all others are ignored.
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
        attributes: Sequence[str] = (),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.size, self.attributes = tuple(size), tuple(attributes)
        self.embed: nn.Module = nn.Linear(channels, width) if channels else nn.Embedding(num_codes + 1, width)
        self.position = nn.Parameter(0.02 * torch.randn(*size, width))
        self.time = TimeEmbedding(width, width)
        self.known = nn.Linear(len(attributes), width, bias=False) if attributes else None
        self.unknown = nn.Parameter(0.02 * torch.randn(len(attributes), width)) if attributes else None
        self.blocks = nn.ModuleList([TransformerBlock(width, num_heads, dropout) for _ in range(num_layers)])
        self.norm_out = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_codes, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, z: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Codes b *z, or embedded codes b d *z, at level t (b, in [0, 1]) -> logits b *z k."""
        embedded = self.embed(z.movedim(1, -1) if isinstance(self.embed, nn.Linear) else z)
        given = self.time(t) + (self._attributes(condition, len(z)) if self.attributes else 0)
        h = rearrange(embedded + self.position, "b ... e -> b (...) e") + given[:, None]
        for block in self.blocks:
            h = block(h)
        logits: Tensor = self.head(self.norm_out(h))
        return logits.unflatten(1, self.size)

    def _attributes(self, condition: Condition | None, num: int) -> Tensor:
        """b e; an attribute that is absent or NaN is the learned unknown of its name."""
        assert self.known is not None
        assert self.unknown is not None
        absent = self.position.new_full((num,), torch.nan)
        given = condition.attributes if condition else {}
        values = torch.stack([given.get(name, absent).to(absent) for name in self.attributes], dim=1)
        unknown = values.isnan()
        return self.known(values.nan_to_num()) + unknown.to(absent) @ self.unknown


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

    def forward(self, h: Tensor) -> Tensor:
        """The sequence after both branches; b p e -> b p e."""
        q, k, v = rearrange(self.qkv(self.norm1(h)), "b p (k h d) -> k b h p d", k=3, h=self.heads)
        dropout = self.dropout if self.training else 0.0
        mixed = attend(q, k, v, dropout)
        h = h + self.out(rearrange(mixed, "b h p d -> b p (h d)"))
        result: Tensor = h + self.perceptron(self.norm2(h))
        return result
