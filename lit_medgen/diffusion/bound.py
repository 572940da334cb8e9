r"""The variational bound of a diffusion model's likelihood, term by term, in nats per image.

For a latent z (the image itself, or what an encoder makes of it), z_t = alpha_t z + sigma_t eps and gamma = -log SNR,

    -log p(x) <=  E[-log p(x | z_0)]                              reconstruction, see `likelihoods`
                + KL(q(z_1 | x) || N(0, I))                       prior
                + 1/2 E[gamma'(t) |eps - epŝ(z_t)|^2]             diffusion, t uniform in [0, 1]

(Kingma et al. 2021, "Variational Diffusion Models", eq. 11 and 17); with T steps the last is their eq. 14,

    T/2 E[expm1(gamma(t) - gamma(s)) |eps - epŝ(z_t)|^2],   t = i / T, s = (i - 1) / T, i uniform in 1 ... T.

In continuous time the bound depends on the ends of gamma alone. What lies between them is trained to lower the variance
of the estimate instead (appendix I.2): with parameters eta behind it, grad E[L_t^2] = E[2 L_t grad L_t], which is what
comes out of the backward pass of the bound itself, when each image's gradient towards its own gamma(t) and gamma'(t) is
multiplied by 2 L_t. `NoiseAt` does so; it divides by the batch's mean loss, so that clipping the gradient's norm treats
these parameters as all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_medgen.diffusion.gaussian import broadcast
from lit_medgen.diffusion.learned_schedules import GammaSchedule
from lit_medgen.diffusion.schedules import slope

Predict = Callable[[Tensor, Tensor], Tensor]
"""Noisy latents z_t, b d *z, and their noise levels in [0, 1], b -> the noise in them as a network sees it, b d *z."""


def bits_per_dimension(nats: Tensor, num: int) -> Tensor:
    """Bits for each of so many values of an image, from nats of the whole image; of the same shape."""
    return nats / (num * math.log(2))


@dataclass(frozen=True)
class NoiseAt:
    """The noise of latents at times t, and how gradients go back to the schedule.

    Attributes:
        level: gamma's share of its range, b; what the network is told, so that it sees noise and not time.
        gamma: -log SNR, b.
        rate: gamma'(t), b, or with T steps T expm1(gamma(t) - gamma(s)).
    """

    level: Tensor
    gamma: Tensor
    rate: Tensor
    _weights: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, schedule: GammaSchedule, t: Tensor, num_steps: int | None = None) -> NoiseAt:
        """At times t, b, float64; with a number of steps T, at the multiples of 1 / T that follow them.

        With steps the bound depends on what lies between the ends too, so that is not trained by variance then.
        """
        if num_steps is not None:
            return cls._of_steps(schedule, t.double(), num_steps)
        weights: list[Tensor] = []
        level, pace = schedule.level(t.double()), slope(schedule.level, t)
        if torch.is_grad_enabled() and schedule.learns_interior():
            for value in (level, pace):
                if value.requires_grad:
                    value.register_hook(_weighed_by(weights))  # type: ignore[no-untyped-call]
        return cls(level, schedule.gamma_min + schedule.span * level, schedule.span * pace, weights)

    @classmethod
    def _of_steps(cls, schedule: GammaSchedule, t: Tensor, num_steps: int) -> NoiseAt:
        if num_steps < 1:
            raise ValueError(f"num_steps is {num_steps}; give at least 1, or None for continuous time.")
        step = (t * num_steps).ceil().clamp(1, num_steps)
        level, before = (schedule.level(i / num_steps) for i in (step, step - 1))
        rate = num_steps * torch.expm1(schedule.span * (level - before))
        return cls(level, schedule.gamma_min + schedule.span * level, rate)

    def perturb(self, z: Tensor, eps: Tensor) -> Tensor:
        """z_t, b d *z."""
        alpha, sigma = torch.sigmoid(-self.gamma).sqrt(), torch.sigmoid(self.gamma).sqrt()
        return broadcast(alpha, z) * z + broadcast(sigma, z) * eps

    def weigh(self, losses: Tensor) -> None:
        """From now on gradients towards the schedule's interior are those of E[L_t^2] over the mean loss."""
        detached = losses.detach()
        self._weights[:] = [2 * detached / detached.mean().clamp(min=torch.finfo(detached.dtype).tiny)]


def _weighed_by(weights: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """A hook that multiplies a gradient by the weights that are there by then."""
    return lambda gradient: gradient * weights[0].to(gradient) if weights else gradient


def diffusion_term(
    predict: Predict, schedule: GammaSchedule, z: Tensor, t: Tensor, eps: Tensor, num_steps: int | None = None
) -> Tensor:
    """The diffusion term of each image at one time each, b, nats; its mean over t and eps is the term.

    Args:
        predict: epŝ of noisy latents.
        schedule: the noise schedule.
        z: latents, b d *z.
        t: times spread over [0, 1], b.
        eps: noise from N(0, I), b d *z.
        num_steps: T; None: continuous time.
    """
    noise = NoiseAt.of(schedule, t, num_steps)
    error = (predict(noise.perturb(z, eps), noise.level) - eps).float().square().flatten(1).sum(1)
    losses = noise.rate * error / 2
    noise.weigh(losses)
    return losses


def prior_term(schedule: GammaSchedule, z: Tensor) -> Tensor:
    """KL(q(z_1 | x) || N(0, I)) of latents z, b d *z -> b, nats."""
    gamma = schedule.gamma_min + schedule.span
    alpha_squared = torch.sigmoid(-gamma)
    # sigma^2 - 1 - log sigma^2 with sigma^2 = 1 - alpha^2; written so that nothing cancels where alpha is small.
    of_variance = -alpha_squared - torch.log1p(-alpha_squared)
    return (alpha_squared * z.double().square() + of_variance).flatten(1).sum(1) / 2


def latent_at_start(schedule: GammaSchedule, z: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """z_0 / alpha_0 = z + sigma_0 / alpha_0 eps, b d *z, and sigma_0 / alpha_0, without dimensions."""
    ratio = torch.exp(schedule.gamma_min / 2)
    return z + ratio.to(z.dtype) * eps, ratio
