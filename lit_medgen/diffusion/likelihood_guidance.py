r"""Guidance by likelihoods p(y | x_t) of what an image should show, from models that the denoiser has never seen.

With p(x_t | y) proportional to p(x_t) p(y | x_t), the score of x_t gains the gradient of log p(y | x_t), and Tweedie's
formula, x̂ = (x_t + sigma_t^2 score) / alpha_t, turns that into

    x̂' = x̂ + scale sigma_t^2 / alpha_t grad log p(y | x_t)

(Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 4, written for x̂, so that any sampler
serves it). Scale 1 is Bayes' theorem, 0 the model without guidance.

Terms stand in groups. Those of a group are summed. A later group sees the shift of those before it: its gradient is
taken where the latent would be with the noise that it has, around the image as shifted so far,

    x_t' = x_t + alpha_t (x̂' - x̂).

Pure noise, alpha(1) = 0, is not guided. What a likelihood holds (masks, what is wanted) is saved for its gradient,
which PyTorch refuses for tensors made in inference mode: make or clone them within `torch.inference_mode(False)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_medgen.batch import Condition
from lit_medgen.diffusion.denoisers import Denoises, at_time
from lit_medgen.diffusion.gaussian import broadcast
from lit_medgen.diffusion.guidance import EVERYWHERE, Guidance

LogLikelihood = Callable[[Tensor, Tensor], Tensor]
"""Noisy images x_t, b c *s, and times, b -> log p(y | x_t) of each image, b; 0 where nothing is asked for."""


@dataclass(frozen=True)
class Term:
    """One likelihood that guides.

    Attributes:
        log_likelihood: differentiable in x_t; that of an image must not depend on the others.
        scale: factor of its gradient.
        interval: low and high: it acts at times in (low, high] alone.
    """

    log_likelihood: LogLikelihood
    scale: float = 1.0
    interval: tuple[float, float] = EVERYWHERE

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"interval is {(low, high)}; give times low and high with 0 <= low <= high <= 1.")

    def acts_at(self, t: float) -> bool:
        """Whether it changes anything at a time."""
        low, high = self.interval
        return self.scale != 0 and (self.interval == EVERYWHERE or low < t <= high)


@dataclass(frozen=True)
class LikelihoodGuidance(Guidance):
    """A denoiser whose x̂ is shifted towards what likelihoods ask for.

    Attributes:
        groups: terms, evaluated group by group as the module describes; empty: the denoiser as it is.
    """

    groups: Sequence[Sequence[Term]] = ()

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """x̂: b c *s, from x_t: b c *s and t: b."""
        x_hat = self.denoiser(x_t, t, condition)
        alpha_t, sigma_t = (broadcast(value, x_t) for value in self.schedule.alpha_sigma(t))
        latent = x_t
        for group in self.groups:
            terms = [term for term in group if term.scale != 0]
            if terms:
                # x_1 = eps says nothing of the image where alpha(1) = 0, nor of what it should show.
                shift = (
                    sigma_t**2 / torch.where(alpha_t > 0, alpha_t, torch.inf) * gradient(_together(terms), latent, t)
                )
                x_hat, latent = x_hat + shift, latent + alpha_t * shift
        return x_hat

    def at(self, t: float) -> Denoises:
        """The same with the terms alone that act at that time; where none does, as in pure noise, the denoiser."""
        inner = at_time(self.denoiser, t)
        if t == 1 and self.schedule.ends_in_noise:
            return inner
        acting = [[replace(term, interval=EVERYWHERE) for term in group if term.acts_at(t)] for group in self.groups]
        groups = [group for group in acting if group]
        return replace(self, denoiser=inner, groups=groups) if groups else inner


def gradient(log_likelihood: LogLikelihood, x_t: Tensor, t: Tensor) -> Tensor:
    """The gradient of log-likelihoods at x_t, b c *s; summed over images, of which none sees another."""
    with torch.inference_mode(False), torch.enable_grad():
        # Clones, as tensors that were made in inference mode can have no gradient.
        x, times = x_t.clone().requires_grad_(), t.clone()
        (found,) = torch.autograd.grad(log_likelihood(x, times).sum(), x)
    return found


def _together(terms: Sequence[Term]) -> LogLikelihood:
    """The sum of scaled log-likelihoods."""

    def log_likelihood(x_t: Tensor, t: Tensor) -> Tensor:
        return torch.stack([_weights(term, t) * term.log_likelihood(x_t, t) for term in terms]).sum(0)

    return log_likelihood


def _weights(term: Term, t: Tensor) -> Tensor | float:
    """The scale of each image, b; 0 outside the interval."""
    low, high = term.interval
    return term.scale if term.interval == EVERYWHERE else term.scale * ((t > low) & (t <= high)).float()
