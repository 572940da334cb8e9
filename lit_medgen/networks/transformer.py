"""Transformers over code maps: one that sees all of a map at once, and one that sees what was made of it before.

In the first (Devlin et al. 2018; Bond-Taylor et al. 2022, appendix) every position of the map attends to every other;
in the second (Esser et al. 2021, section 3.2) each code of the sequence to those before it. Each position has a learned
embedding of its own; the level of corruption, where there is one, and the covariates have one that is added at all
positions, and the tokens of the covariates stand before those of the map (as in-context conditioning, Peebles & Xie
2023, section 3.2). Shapes: b batch, *z spatial axes of the map, p positions, d channels of an embedded code, e width, k
codes, n tokens of the covariates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from lit_medgen.batch import Condition
from lit_medgen.networks.blocks import TimeEmbedding, attend
from lit_medgen.networks.conditioning import ConditionEncoder, Covariates

Joined = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


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
        small_weights(self)
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
            if mask is not None:
                mask = functional.pad(mask, (0, h.shape[1] - mask.shape[1]), value=True)[:, None, None]
        for block in self.blocks:
            h = block(h, mask)
        logits: Tensor = self.head(self.norm_out(h[:, -math.prod(self.size) :]))
        return logits.unflatten(1, self.size)


@dataclass
class Cache:
    """Keys and values of a sequence that a `CausalTransformer` has read, so that they are not computed again.

    Attributes:
        num_read: positions of the sequence that it has read.
        layers: keys and values of each block, b heads p d; the tokens of the covariates stand first.
    """

    num_read: int = 0
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def advance(self, num: int) -> None:
        """Counts positions that were read."""
        self.num_read += num

    def joined(self, block: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of a block, these last, which it keeps."""
        if block == len(self.layers):
            self.layers.append((k, v))
        else:
            past = self.layers[block]
            self.layers[block] = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        return self.layers[block]


class CausalTransformer(nn.Module):
    """Transformer that gives the logits of each code of a sequence from those before it.

    What it reads at a position is the code before; at the first it is a sign for the beginning, K, which no logit
    stands for.

    Args:
        length: codes of the whole sequence.
        num_codes: K, codes that it names.
        width: 512 in the paper.
        num_heads: 8 in the paper.
        num_layers: 24 in the paper.
        covariates: what it is told of an image; all else is ignored.
        dropout: after attention and in the perceptron.
    """

    def __init__(
        self,
        length: int,
        num_codes: int,
        width: int = 512,
        num_heads: int = 8,
        num_layers: int = 24,
        covariates: Covariates | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.length, self.begin, self.covariates = length, num_codes, covariates or Covariates()
        self.embed = nn.Embedding(num_codes + 1, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList([TransformerBlock(width, num_heads, dropout) for _ in range(num_layers)])
        self.norm_out = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_codes, bias=False)
        small_weights(self)
        self.encoder = ConditionEncoder(self.covariates, width) if self.covariates else None

    def forward(
        self, read: Tensor, starts: Tensor, condition: Condition | None = None, cache: Cache | None = None
    ) -> Tensor:
        """Logits b p k of the codes at p consecutive positions of the sequence.

        Args:
            read: b p, the code before each of these positions; `begin` before the first of the sequence.
            starts: b, the position of the first of them; with a cache the same for all.
            condition: what the images are made from.
            cache: of the positions before these, which they then attend to as well, and which takes these up.
        """
        at = starts[:, None] + torch.arange(read.shape[1], device=read.device)
        h, tokens, mask = self.embed(read) + self.position[at], 0, None
        if self.encoder is not None:
            covariates, first, mask = self.encoder(condition, len(read))
            h, tokens = h + covariates[:, None], first.shape[1]
            if cache is None or not cache.num_read:
                h = torch.cat([first.to(h), h], dim=1)
        past = tokens + cache.num_read if cache is not None and cache.num_read else 0
        attended = self._attended(h.shape[1], past, tokens, mask, h.device)
        for number, block in enumerate(self.blocks):
            h = block(h, attended, None if cache is None else partial(cache.joined, number))
        if cache is not None:
            cache.advance(read.shape[1])
        logits: Tensor = self.head(self.norm_out(h[:, -read.shape[1] :]))
        return logits

    @staticmethod
    def _attended(num: int, past: int, tokens: int, mask: Tensor | None, device: torch.device) -> Tensor | None:
        """Which keys each of `num` positions after `past` others attends to; None: all."""
        query = past + torch.arange(num, device=device)[:, None]
        key = torch.arange(past + num, device=device)
        attended = (key <= query) | (key < tokens)
        if mask is None:
            return None if num == 1 else attended
        return attended & functional.pad(mask, (0, past + num - tokens), value=True)[:, None, None]


def small_weights(network: nn.Module) -> None:
    """Draws all linear layers and embeddings with a standard deviation of 0.02 (Radford et al. 2018, section 4.1)."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)


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

    def forward(self, h: Tensor, mask: Tensor | None = None, joined: Joined | None = None) -> Tensor:
        """The sequence after both branches, b p e -> b p e.

        Args:
            h: b p e.
            mask: bool, broadcast to b h p p': which positions each attends to; None: all.
            joined: what keys and values, b h p d, become with those of positions that were read before.
        """
        q, k, v = rearrange(self.qkv(self.norm1(h)), "b p (k h d) -> k b h p d", k=3, h=self.heads)
        if joined is not None:
            k, v = joined(k, v)
        mixed = attend(q, k, v, self.dropout if self.training else 0.0, mask)
        h = h + self.out(rearrange(mixed, "b h p d -> b p (h d)"))
        result: Tensor = h + self.perceptron(self.norm2(h))
        return result
