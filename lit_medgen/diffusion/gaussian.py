r"""The Gaussian process q: perturbation, posterior and score.

    q(x_t | x)      = N(alpha_t x, sigma_t^2 I),                 x_t = alpha_t x + sigma_t eps
    q(x_s | x_t, x) = N(alpha_s c x + alpha_t sigma_s^2 / (alpha_s sigma_t^2) x_t, sigma_s^2 c I),   s < t,
                      c = 1 - SNR_t / SNR_s; also where alpha_t = 0
    score(x_t)      = the gradient of log q(x_t | x) = -eps / sigma_t

(Kingma et al. 2021, "Variational Diffusion Models", appendix A; Song et al. 2021, "Score-Based Generative Modeling
through Stochastic Differential Equations", section 3.) Times have shape b and broadcast over images b c *s.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_medgen.diffusion.schedules import Schedule


def broadcast(value: Tensor, like: Tensor) -> Tensor:
    """A value per image, b, with trailing axes of size 1, so that it multiplies images, b c *s; in their dtype."""
    return value.to(like.dtype).view(*value.shape, *[1] * (like.ndim - value.ndim))


@dataclass(frozen=True)
class GaussianProcess:
    """Gaussian noise added along a schedule.

    Attributes:
        schedule: the noise schedule.
    """

    schedule: Schedule

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, shaped to multiply images."""
        alpha_t, sigma_t = self.schedule.alpha_sigma(t)
        return broadcast(alpha_t, like), broadcast(sigma_t, like)

    def perturb(self, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = alpha_t x + sigma_t eps (Ho et al. 2020, eq. 4); x and eps: b c *s, t: b."""
        alpha_t, sigma_t = self.coefficients(t, x)
        return alpha_t * x + sigma_t * eps

    def transition(self, x_s: Tensor, s: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """A sample of q(x_t | x_s) for s < t, b c *s, from eps ~ N(0, I)."""
        alpha_s, _ = self.coefficients(s, x_s)
        alpha_t, sigma_t = self.coefficients(t, x_s)
        return alpha_t / alpha_s * x_s + sigma_t * broadcast(self.fresh(t, s), x_s).sqrt() * eps

    def fresh(self, t: Tensor, s: Tensor) -> Tensor:
        """c = 1 - SNR_t / SNR_s, the share of the noise at t that was added after s; shape of t."""
        return -torch.expm1(self.schedule.log_snr(t) - self.schedule.log_snr(s))

    def posterior(self, x_t: Tensor, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (b c *s) and standard deviation (broadcastable) of q(x_s | x_t, x)."""
        alpha_t, sigma_t = self.coefficients(t, x_t)
        alpha_s, sigma_s = self.coefficients(s, x_t)
        c = broadcast(self.fresh(t, s), x_t)
        return alpha_s * c * x + alpha_t / alpha_s * (sigma_s / sigma_t) ** 2 * x_t, sigma_s * c.sqrt()

    def score_from_x(self, x: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The score at x_t, b c *s, given the data."""
        alpha_t, sigma_t = self.coefficients(t, x_t)
        return (alpha_t * x - x_t) / sigma_t**2

    def x_from_score(self, score: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The data, b c *s, given the score at x_t (Tweedie's formula)."""
        alpha_t, sigma_t = self.coefficients(t, x_t)
        return (x_t + sigma_t**2 * score) / alpha_t
