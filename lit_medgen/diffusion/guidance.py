r"""Guidance: denoisers that wrap a denoiser, so that any sampler serves any guidance.

Classifier-free guidance (Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", eq. 6, with scale = 1 + w) goes from
the estimate without a condition through that with it:

    x̂ = x̂_null + scale (x̂_cond - x̂_null),    scale 1: the conditional model, scale 0: the model without a condition.

Because x̂, eps and v are affine in one another, given x_t, it is the same formula for each. `Clipped` goes outermost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_medgen.batch import Condition
from lit_medgen.diffusion.denoisers import Denoises
from lit_medgen.diffusion.schedules import Schedule


@dataclass(frozen=True)
class Guidance:
    """What wrappers of a denoiser share.

    Attributes:
        denoiser: what is wrapped: a `Denoiser`, or other guidance.
    """

    denoiser: Denoises

    @property
    def schedule(self) -> Schedule:
        """The noise schedule of what is wrapped."""
        return self.denoiser.schedule


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
    """

    scale: float

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """x̂: b c *s, from x_t: b c *s and t: b."""
        null = condition.drop(torch.ones(len(x_t), dtype=torch.bool, device=x_t.device))
        return guided(lambda given: self.denoiser(x_t, t, given), condition, null, self.scale)


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
