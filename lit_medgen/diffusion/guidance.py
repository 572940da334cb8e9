r"""Guidance: denoisers that wrap a denoiser, so that any sampler serves any guidance.

Classifier-free guidance (Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", eq. 6, with scale = 1 + w) goes from
the estimate without a condition through that with it:

    x̂ = x̂_null + scale (x̂_cond - x̂_null),    scale 1: the conditional model, scale 0: the model without a condition.

Because x̂, eps and v are affine in one another, given x_t, it is the same formula for each. `Clipped` goes outermost.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_medgen.batch import Condition
from lit_medgen.diffusion.denoisers import Denoises, at_time
from lit_medgen.diffusion.schedules import Schedule

EVERYWHERE = (0.0, 1.0)
"""The interval of times that holds all, t = 0 too."""


@dataclass(frozen=True)
class Guidance(ABC):
    """What wrappers of a denoiser share.

    Attributes:
        denoiser: what is wrapped: a `Denoiser`, or other guidance.
    """

    denoiser: Denoises

    @property
    def schedule(self) -> Schedule:
        """The noise schedule of what is wrapped."""
        return self.denoiser.schedule

    @abstractmethod
    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """x̂ of the shape of x_t, b c *s; t: b."""

    def at(self, t: float) -> Denoises:
        """The same wrapper of what the wrapped denoiser is at the time t."""
        return replace(self, denoiser=at_time(self.denoiser, t))


@dataclass(frozen=True)
class Clipped(Guidance):
    """x̂ clamped to [-1, 1], the range of every image (as Ho et al. 2020's code does); the outermost wrapper."""

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """x̂: b c *s in [-1, 1], from x_t: b c *s and t: b."""
        return self.denoiser(x_t, t, condition).clamp(-1, 1)


@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """Classifier-free guidance, for networks that were trained with conditions dropped (`Condition.drop`).

    Attributes:
        scale: 0 ignores the condition, 1 is the conditional model, more exaggerates what the condition changes.
        interval: low and high: guidance acts at times in (low, high] alone, and elsewhere the model is the conditional
            one, which costs one evaluation instead of two (Kynkäänniemi et al. 2024, "Applying Guidance in a Limited
            Interval Improves Sample and Distribution Quality in Diffusion Models"; they count in sigma, here it is t).
        rescale: 0 to 1, how far the standard deviation of each x̂ is brought back to that of the conditional model (Lin
            et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", eq. 15 and 16, who found 0.7
            best). They rescale what the network predicts, v; we rescale x̂, which is the same for all parametrisations.
            Both are one at t = 1 of zero terminal SNR, where v = -x.
        keep: parts of the condition, and attributes by name, that the model without a condition is told too; guidance
            is about the others.
    """

    scale: float
    interval: tuple[float, float] = EVERYWHERE
    rescale: float = 0.0
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"interval is {(low, high)}; give times low and high with 0 <= low <= high <= 1.")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale is {self.rescale}; give 0 (none) to 1 (the conditional model's deviation).")

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """x̂: b c *s, from x_t: b c *s and t: b."""
        low, high = self.interval
        if self.scale == 1 or low == high:
            return self.denoiser(x_t, t, condition)
        null = condition.drop(torch.ones(len(x_t), dtype=torch.bool, device=x_t.device), self.keep)
        everywhere = (low, high) == EVERYWHERE
        if everywhere and self.rescale == 0:
            return guided(lambda given: self.denoiser(x_t, t, given), condition, null, self.scale)
        conditional, without = self.denoiser(x_t, t, condition), self.denoiser(x_t, t, null)
        x_hat = without + self.scale * (conditional - without)
        if self.rescale > 0:
            x_hat = rescaled(x_hat, conditional, self.rescale)
        if everywhere:
            return x_hat
        inside = ((t > low) & (t <= high)).view(-1, *[1] * (x_t.ndim - 1))
        return torch.where(inside, x_hat, conditional)

    def at(self, t: float) -> Denoises:
        """The conditional model outside the interval, and inside it guidance without one."""
        low, high = self.interval
        inner = at_time(self.denoiser, t)
        inside = (low, high) == EVERYWHERE or low < t <= high
        return replace(self, denoiser=inner, interval=EVERYWHERE) if inside else inner


def rescaled(x_hat: Tensor, conditional: Tensor, share: float) -> Tensor:
    """x̂ of guidance, its standard deviation brought towards the conditional model's (Lin et al. 2024, eq. 15 and 16).

    Args:
        x_hat: b c *s.
        conditional: x̂ of the conditional model, b c *s; each image's deviation is over all its voxels and channels.
        share: 0 changes nothing, 1 gives the conditional model's deviation; an x̂ that does not vary is left.
    """
    axes = tuple(range(1, x_hat.ndim))
    std, aim = (each.std(axes, correction=0, keepdim=True) for each in (x_hat, conditional))
    factor = torch.where(std > 0, aim / std, 1.0)
    return share * factor * x_hat + (1 - share) * x_hat


def guided(predict: Callable[[Condition], Tensor], condition: Condition, null: Condition, scale: float) -> Tensor:
    """What classifier-free guidance makes of two predictions (x̂, eps, v or logits), or of one where one is enough.

    Args:
        predict: the prediction for a condition.
        condition: what the images are made from.
        null: the same with everything absent.
        scale: see `ClassifierFree`.
    """
    if scale == 1:
        return predict(condition)
    without = predict(null)
    return without if scale == 0 else without + scale * (predict(condition) - without)
