r"""Processes on code maps, with T levels: what destroys codes, and one step back given a guess of them.

    Absorbing   q(z_t | z_0): every code is masked with probability t / T (Austin et al. 2021; Bond-Taylor et al. 2022)
                p(z_s | z_t): a masked code is unmasked with probability (t - s) / t, by one drawn from p(z_0 | z_t)
    Heat        z_t = blur(e(z_0), t) + sigma noise, e the embedded codes (or, as latents of shape 120 x 121
                in Discrete VQ-IHDM imply, the indices themselves, rounded)
                p(z_s | z_t): the mean of e(z_0) under p(z_0 | z_t), or e of a draw of z_0, blurred for level s, with
                noise delta                                                      (Rissanen et al. 2023, algorithm 2)

A state is what the network reads: codes with the mask, b *z, or embedded codes, b d *z; at level 0 it is codes, b *z.
The network's logits are those of p(z_0 | z_t), of each code by itself: b *z k, with k = 0 to K - 1 the codes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from lit_medgen.batch import sent
from lit_medgen.diffusion.heat import BlurSchedule, dissipate
from lit_medgen.seeds import SeededNoise


class DiscreteProcess(ABC):
    """Destroys code maps in T levels.

    Attributes:
        num_levels: T.
    """

    num_levels: int

    @abstractmethod
    def corrupt(self, codes: Tensor, level: Tensor) -> Tensor:
        """A sample of q(z_t | z_0) for codes b *z at levels b, 1 to T, with PyTorch's global random numbers."""

    @abstractmethod
    def reverse(self, codes: Tensor, state: Tensor, t: int, s: int, noise: SeededNoise) -> Tensor:
        """The state at level s < t from that at t, given codes drawn from p(z_0 | z_t), b *z."""


class AbsorbingProcess(DiscreteProcess):
    """Codes are masked one by one.

    Args:
        num_levels: T; 256 in the paper.
        mask: index that stands for a masked code: K, one more than the greatest code.
    """

    def __init__(self, num_levels: int, mask: int) -> None:
        self.num_levels, self.mask = num_levels, mask

    def corrupt(self, codes: Tensor, level: Tensor) -> Tensor:
        """Masks every code with probability t / T."""
        share = sent(level / self.num_levels, codes.device).view(-1, *[1] * (codes.ndim - 1))
        return codes.masked_fill(torch.rand(codes.shape, device=codes.device) < share, self.mask)

    def reverse(self, codes: Tensor, state: Tensor, t: int, s: int, noise: SeededNoise) -> Tensor:
        """Unmasks every masked code with probability (t - s) / t."""
        chosen = noise.uniform(codes.shape[1:], like=codes) < (t - s) / t
        return torch.where(chosen & (state == self.mask), codes, state)

    def masked_error(self, logits: Tensor, codes: Tensor, state: Tensor) -> Tensor:
        """CE_t, b in nats: the cross-entropy of logits b *z k, summed over the codes that are masked in the state."""
        error = functional.cross_entropy(logits.float().movedim(-1, 1), codes, reduction="none")
        return (error * (state == self.mask)).flatten(1).sum(1)

    def bound(self, codes: Tensor, logits_of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """sum_t CE_t / t >= -log p(z_0), b in nats, with one state of each level (Bond-Taylor et al. 2022, eq. 7).

        Args:
            codes: b *z.
            logits_of: state b *z and level b -> logits b *z k of p(z_0 | z_t).
        """
        total = torch.zeros(len(codes), device=codes.device)
        for t in range(1, self.num_levels + 1):
            level = torch.full((len(codes),), t, device=codes.device)
            state = self.corrupt(codes, level)
            total += self.masked_error(logits_of(state, level), codes, state) / t
        return total


class HeatProcess(DiscreteProcess):
    """Embedded codes (or the indices of codes) are blurred.

    Args:
        schedule: heat time of each level.
        embed: codes b *z -> b d *z; not used where indices are blurred.
        num_codes: K.
        sigma: standard deviation of the noise on a blurred map; 0.01 in IHDM, for embeddings of unit variance.
        delta: standard deviation of the noise added in sampling; 1.25 sigma in IHDM.
        space: what is blurred, "embedding" or "index".
    """

    def __init__(
        self,
        schedule: BlurSchedule,
        embed: Callable[[Tensor], Tensor],
        num_codes: int,
        sigma: float = 0.01,
        delta: float = 0.0125,
        space: Literal["embedding", "index"] = "embedding",
    ) -> None:
        self.schedule, self.embed, self.num_codes = schedule, embed, num_codes
        self.sigma, self.delta, self.space = sigma, delta, space
        self.num_levels = schedule.num_levels

    def corrupt(self, codes: Tensor, level: Tensor) -> Tensor:
        """Blurs for the level's heat time and adds noise sigma."""
        blurred = self.blur(codes, level)
        return self.finish(blurred + self.sigma * torch.randn_like(blurred))

    def reverse(self, codes: Tensor, state: Tensor, t: int, s: int, noise: SeededNoise) -> Tensor:
        """Blurs the drawn codes for level s and adds noise delta; at level 0, the codes themselves."""
        return codes if s == 0 else self.reblur(self.clean(codes), s, noise)

    def reblur(self, guess: Tensor, s: int, noise: SeededNoise) -> Tensor:
        """The state at level s > 0 from a guess of the clean map, b d *z."""
        level = torch.full((len(guess),), s, device=guess.device)
        blurred = dissipate(guess, self.schedule.heat_time(level))
        return self.finish(blurred + self.delta * noise.like(blurred))

    def mean(self, logits: Tensor) -> Tensor:
        """The mean of the clean map, b d *z, under logits b *z k."""
        values = self.clean(torch.arange(self.num_codes, device=logits.device)[None])[0]
        return torch.einsum("b...k,dk->bd...", logits.float().softmax(-1), values)

    def clean(self, codes: Tensor) -> Tensor:
        """The clean map that is blurred, b d *z, of codes b *z; indices are a map of one channel."""
        return self.embed(codes) if self.space == "embedding" else codes[:, None].float()

    def blur(self, codes: Tensor, level: Tensor) -> Tensor:
        """The map that heat dissipation makes of codes, b d *z."""
        return dissipate(self.clean(codes), self.schedule.heat_time(level))

    def finish(self, blurred: Tensor) -> Tensor:
        """What the network reads: the map itself, or the nearest valid indices."""
        if self.space == "embedding":
            return blurred
        return blurred[:, 0].round().clamp(0, self.num_codes - 1).long()


def draw(logits: Tensor, temperature: float, uniform: Tensor) -> Tensor:
    """Codes b *z drawn from softmax(logits / temperature), logits b *z k, by inverting its distribution function.

    Args:
        logits: b *z k.
        temperature: 0 takes the likeliest codes.
        uniform: a number in [0, 1) for each code, b *z.
    """
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = (logits.float() / temperature).softmax(-1).cumsum(-1)
    codes = (cumulative <= uniform[..., None] * cumulative[..., -1:]).sum(-1)  # 0 takes no code of probability 0
    return codes.clamp(max=logits.shape[-1] - 1)


def top_logits(logits: Tensor, top_k: int | None = None, top_p: float = 1.0) -> Tensor:
    """Logits ... k, -inf for all but the largest: the largest `top_k`, and of these the fewest that reach `top_p`.

    Of equal logits at the border the first are kept, so that there are never more than `top_k` (Fan et al. 2018;
    nucleus sampling, Holtzman et al. 2020, section 3.1).

    Args:
        logits: ... k.
        top_k: how many are kept; None: all.
        top_p: the probability that those kept must reach together, in (0, 1].
    """
    if top_k is None and top_p == 1:
        return logits
    ordered, codes = logits.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.shape[-1], device=logits.device)
    gone = rank >= (top_k or logits.shape[-1])
    probability = ordered.masked_fill(gone, -torch.inf).float().softmax(-1)
    gone = gone | (probability.cumsum(-1) - probability >= top_p)
    return torch.full_like(logits, -torch.inf).scatter(-1, codes, ordered.masked_fill(gone, -torch.inf))


def descending(num_levels: int, num_steps: int) -> list[int]:
    """Levels from T to 0 in `num_steps` steps as even as whole numbers allow."""
    return [round(num_levels * (num_steps - i) / num_steps) for i in range(num_steps + 1)]
