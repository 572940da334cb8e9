r"""Quantizers: maps of vectors to maps of codes and back.

    NearestNeighbour   q_i = argmin_{c_j in C} |e_i - c_j|                        (van den Oord et al. 2017, eq. 2)
                       codebook loss |sg[e] - q|^2 + beta |sg[q] - e|^2           (their eq. 3)
                       or a codebook of moving averages of what is mapped to it   (their appendix A.1)
    FSQ                every channel rounded to one of a few levels; no codebook, no loss, no dead codes
                                                                                  (Mentzer et al. 2023, section 3.1)

Gradients pass straight through: q = e + sg[q - e]. Shapes: b batch, d channels, *z spatial axes, k codes, n vectors.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from lit_medgen.batch import sent

MIN_COUNT = 1e-6
"""A code to which fewer vectors are mapped, on average, does not move: the ratio of two underflowed sums is noise."""


@dataclass(frozen=True)
class Quantized:
    """A quantized latent map.

    Attributes:
        latent: b d *z, the quantized map; its gradient is that of what was quantized.
        codes: b *z, int64.
        loss: scalar, the codebook's part of the loss.
    """

    latent: Tensor
    codes: Tensor
    loss: Tensor


class Quantizer(nn.Module, ABC):
    """Maps latent maps to codes and back.

    Attributes:
        num_codes: number of different codes.
        channels: channels of a latent map.
    """

    num_codes: int
    channels: int

    @abstractmethod
    def codes(self, latent: Tensor) -> Tensor:
        """The codes of latent maps, b d *z -> b *z, int64."""

    @abstractmethod
    def embed(self, codes: Tensor) -> Tensor:
        """b *z -> b d *z."""

    @abstractmethod
    def forward(self, latent: Tensor) -> Quantized:
        """Quantizes latent maps, b d *z; in training mode a codebook may change."""


class NearestNeighbour(Quantizer):
    """Quantizer that maps each vector to the nearest code of a codebook.

    Args:
        num_codes: number of codes, K in the paper.
        channels: channels of a code, D in the paper.
        commitment: weight of |sg[q] - e|^2; 0.25 in the paper.
        codebook_weight: weight of |sg[e] - q|^2. The reference code has the two weights exchanged.
        ema_decay: weight of the past in a codebook of moving averages; None: the codebook is learned by gradient.
        revive_after: a code to which no vector was mapped in so many steps is replaced by a random vector of the batch;
            0: never.
    """

    codebook: Tensor
    count: Tensor
    total: Tensor
    unused: Tensor

    def __init__(
        self,
        num_codes: int = 1024,
        channels: int = 256,
        commitment: float = 0.25,
        codebook_weight: float = 1.0,
        ema_decay: float | None = None,
        revive_after: int = 0,
    ) -> None:
        super().__init__()
        self.num_codes, self.channels = num_codes, channels
        self.commitment, self.codebook_weight = commitment, codebook_weight
        self.ema_decay, self.revive_after = ema_decay, revive_after
        codebook = torch.empty(num_codes, channels).uniform_(-1 / num_codes, 1 / num_codes)
        if ema_decay is None:
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
            self.register_buffer("count", torch.ones(num_codes))
            self.register_buffer("total", codebook.clone())
        self.register_buffer("unused", torch.zeros(num_codes, dtype=torch.int64))

    def codes(self, latent: Tensor) -> Tensor:
        """The nearest codes, b d *z -> b *z."""
        return self._nearest(_vectors(latent)).view(len(latent), *latent.shape[2:])

    def embed(self, codes: Tensor) -> Tensor:
        """b *z -> b d *z."""
        return functional.embedding(codes, self.codebook).movedim(-1, 1)

    def forward(self, latent: Tensor) -> Quantized:
        """The nearest codes and their loss; in training mode the codebook's averages and dead codes come first."""
        latent = latent.float()
        vectors = _vectors(latent)
        nearest = self._nearest(vectors)
        if self.training:
            self._renew(vectors.detach(), nearest)
            nearest = self._nearest(vectors)
        codes = nearest.view(len(latent), *latent.shape[2:])
        chosen = self.embed(codes)
        loss = self.commitment * functional.mse_loss(latent, chosen.detach())
        if self.ema_decay is None:
            loss = loss + self.codebook_weight * functional.mse_loss(chosen, latent.detach())
        return Quantized(latent + (chosen - latent).detach(), codes, loss)

    def _nearest(self, vectors: Tensor) -> Tensor:
        """The nearest code of each vector, n d -> n, by |e - c|^2 without the term |e|^2, which all codes share."""
        codebook = self.codebook.detach().float()
        # Distances of near codes drown in bf16.
        with torch.no_grad(), torch.autocast(vectors.device.type, enabled=False):
            return (codebook.square().sum(1) - 2 * vectors.float() @ codebook.T).argmin(1)

    @torch.no_grad()
    def _renew(self, vectors: Tensor, nearest: Tensor) -> None:
        """Updates the moving averages of each code's vectors, over all processes; then revives dead codes."""
        count = usage(nearest, self.num_codes).to(vectors)
        total = torch.zeros_like(self.codebook).index_add_(0, nearest, vectors)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(count)
            dist.all_reduce(total)
        if self.ema_decay is not None:
            self.count.lerp_(count, 1 - self.ema_decay)
            self.total.lerp_(total, 1 - self.ema_decay)
            seen = (self.count > MIN_COUNT)[:, None]
            self.codebook.copy_(torch.where(seen, self.total / self.count[:, None], self.codebook))
        if self.revive_after:
            self.unused.add_(1).masked_fill_(count > 0, 0)
            self._revive(vectors)

    def _revive(self, vectors: Tensor) -> None:
        """Replaces codes that were long unused by random vectors of the batch; those of the first process, on all.

        Vectors are drawn for all codes: drawing as many as there are dead codes would wait for the device.
        """
        dead = self.unused >= self.revive_after
        chosen = vectors[sent(torch.randint(len(vectors), (self.num_codes,)), vectors.device)]
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(chosen, src=0)
        self.codebook.copy_(torch.where(dead[:, None], chosen, self.codebook))
        self.unused.masked_fill_(dead, 0)
        if self.ema_decay is not None:
            self.count.masked_fill_(dead, 1)
            self.total.copy_(torch.where(dead[:, None], chosen, self.total))


class FSQ(Quantizer):
    """Finite scalar quantization: channel i is bounded and rounded to `levels[i]` values in [-1, 1].

    Args:
        levels: number of values of each channel, at least 3; the number of codes is their product.
    """

    def __init__(self, levels: Sequence[int] = (8, 5, 5, 5)) -> None:
        super().__init__()
        if min(levels) < 3:
            raise ValueError(f"quantizer.init_args.levels is {list(levels)}; give at least 3 for each channel.")
        self.levels = tuple(levels)
        self.num_codes, self.channels = math.prod(levels), len(levels)
        self.bases = [math.prod(self.levels[:i]) for i in range(len(levels))]

    def codes(self, latent: Tensor) -> Tensor:
        """b d *z -> b *z."""
        latent = latent.float()
        digits = [(self._steps(latent[:, i], level).round() + level // 2).long() for i, level in enumerate(self.levels)]
        return torch.stack([digit * base for digit, base in zip(digits, self.bases, strict=True)]).sum(0)

    def embed(self, codes: Tensor) -> Tensor:
        """b *z -> b d *z in [-1, 1]."""
        steps = [codes // base % level - level // 2 for base, level in zip(self.bases, self.levels, strict=True)]
        return torch.stack([step / (level // 2) for step, level in zip(steps, self.levels, strict=True)], dim=1)

    def forward(self, latent: Tensor) -> Quantized:
        """Rounds every channel; the gradient passes straight through the rounding, to the bounded channel."""
        latent = latent.float()
        channels = [self._steps(latent[:, i], level) / (level // 2) for i, level in enumerate(self.levels)]
        bounded = torch.stack(channels, dim=1)
        codes = self.codes(latent)
        return Quantized(bounded + (self.embed(codes) - bounded).detach(), codes, latent.new_zeros(()))

    @staticmethod
    def _steps(channel: Tensor, level: int) -> Tensor:
        """A channel, bounded so that rounding gives `level` different whole numbers from -(level // 2) on."""
        half, offset = (level - 1) * (1 - 1e-3) / 2, 0.5 if level % 2 == 0 else 0.0
        shift = math.atanh(offset / half) if offset else 0.0
        return (channel + shift).tanh() * half - offset


def usage(codes: Tensor, num_codes: int) -> Tensor:
    """How often each code occurs, k, int64; `bincount` would wait for the device."""
    flat = codes.flatten()
    return flat.new_zeros(num_codes).index_add_(0, flat, torch.ones_like(flat))


def perplexity(counts: Tensor) -> Tensor:
    """Number of equally used codes that have the same entropy as these counts: exp of the entropy. k -> scalar."""
    p = counts.float() / counts.sum()
    return (-torch.xlogy(p, p).sum()).exp()


def _vectors(latent: Tensor) -> Tensor:
    """The vectors of latent maps, b d *z -> n d."""
    return rearrange(latent, "b d ... -> (b ...) d")
