r"""Parametrisations: what a network predicts, and what that says of the data.

    x      the data
    eps    the noise                     (Ho et al. 2020, "Denoising Diffusion Probabilistic Models", section 3.2)
    v      alpha_t eps - sigma_t x       (Salimans & Ho 2022, "Progressive Distillation", appendix D)
    velocity   u = dx_t/dt = alpha'_t x + sigma'_t eps   (Lipman et al. 2023, "Flow Matching for Generative Modeling",
           theorem 3); eps - x for rectified flow without a shift

Each is a linear function of any two others, on any schedule; alpha_t^2 + sigma_t^2 need not be 1. An error of the
prediction is an error of x̂ times a gain,

    |epŝ - eps|^2 = SNR |x̂ - x|^2,    |v̂ - v|^2 = ((alpha_t^2 + sigma_t^2) / sigma_t)^2 |x̂ - x|^2,
    |û - u|^2 = (alpha_t lambda'(t) / 2)^2 |x̂ - x|^2,

so a weight of |x̂ - x|^2 divided by the gain is the weight of the same loss written for the prediction. With variance
preserved the gain of v is SNR + 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from lit_medgen.diffusion.gaussian import GaussianProcess, broadcast
from lit_medgen.diffusion.schedules import Schedule

ParametrisationName = Literal["x", "eps", "v", "velocity"]
"""How configs write a parametrisation; `Parametrisation.named` gives the object."""


class Parametrisation(ABC):
    """What a network predicts. Images are b c *s, times are b."""

    @staticmethod
    def named(name: ParametrisationName) -> Parametrisation:
        """The parametrisation that configs call so; ValueError, with the names there are, for any other name."""
        if name not in PARAMETRISATIONS:
            raise ValueError(f"parametrisation is {name!r}; choose from {', '.join(PARAMETRISATIONS)}.")
        return PARAMETRISATIONS[name]

    @abstractmethod
    def to_x(self, prediction: Tensor, x_t: Tensor, t: Tensor, process: GaussianProcess) -> Tensor:
        """x̂, given a prediction at x_t and t."""

    @abstractmethod
    def target(self, x: Tensor, x_t: Tensor, t: Tensor, process: GaussianProcess) -> Tensor:
        """What should be predicted at x_t and t, given the data; the inverse of `to_x`."""

    @abstractmethod
    def gain(self, t: Tensor, schedule: Schedule) -> Tensor:
        """|prediction - target|^2 / |x̂ - x|^2 at times t, of the shape of t."""


class X(Parametrisation):
    """The network predicts the data x themselves."""

    def to_x(self, prediction: Tensor, x_t: Tensor, t: Tensor, process: GaussianProcess) -> Tensor:
        """x̂, which is the prediction itself."""
        return prediction

    def target(self, x: Tensor, x_t: Tensor, t: Tensor, process: GaussianProcess) -> Tensor:
        """The data x, which the network must predict."""
        return x

    def gain(self, t: Tensor, schedule: Schedule) -> Tensor:
        """One: the error is that of x̂."""
        return torch.ones_like(t)


class Eps(Parametrisation):
    """The network predicts the noise eps."""

    def to_x(self, prediction: Tensor, x_t: Tensor, t: Tensor, process: GaussianProcess) -> Tensor:
        """x̂, given the noise."""
        alpha_t, sigma_t = process.coefficients(t, x_t)
        return (x_t - sigma_t * prediction) / alpha_t

    def target(self, x: Tensor, x_t: Tensor, t: Tensor, process: GaussianProcess) -> Tensor:
        """The noise in x_t, given the data."""
        alpha_t, sigma_t = process.coefficients(t, x_t)
        return (x_t - alpha_t * x) / sigma_t

    def gain(self, t: Tensor, schedule: Schedule) -> Tensor:
        """The SNR, alpha_t^2 / sigma_t^2."""
        return schedule.log_snr(t).exp()


class V(Parametrisation):
    """The network predicts v = alpha_t eps - sigma_t x."""

    def to_x(self, prediction: Tensor, x_t: Tensor, t: Tensor, process: GaussianProcess) -> Tensor:
        """x̂ = (alpha_t x_t - sigma_t v) / (alpha_t^2 + sigma_t^2), given the prediction of v."""
        alpha_t, sigma_t = process.coefficients(t, x_t)
        return (alpha_t * x_t - sigma_t * prediction) / (alpha_t**2 + sigma_t**2)

    def target(self, x: Tensor, x_t: Tensor, t: Tensor, process: GaussianProcess) -> Tensor:
        """v of the data x and noise eps."""
        alpha_t, sigma_t = process.coefficients(t, x_t)
        return (alpha_t * x_t - (alpha_t**2 + sigma_t**2) * x) / sigma_t

    def gain(self, t: Tensor, schedule: Schedule) -> Tensor:
        """((alpha_t^2 + sigma_t^2) / sigma_t)^2, of the shape of t."""
        alpha_t, sigma_t = schedule.alpha_sigma(t)
        return ((alpha_t**2 + sigma_t**2) / sigma_t) ** 2


class Velocity(Parametrisation):
    """The network predicts the velocity u = dx_t/dt = alpha'_t x + sigma'_t eps, along which flow samplers walk."""

    def to_x(self, prediction: Tensor, x_t: Tensor, t: Tensor, process: GaussianProcess) -> Tensor:
        """x̂ = (sigma'_t x_t - sigma_t u) / (alpha_t sigma'_t - sigma_t alpha'_t), given the prediction of u."""
        _, sigma_t = process.coefficients(t, x_t)
        _, d_sigma, pace = (broadcast(rate, x_t) for rate in _rates(t, process.schedule))
        return (d_sigma * x_t - sigma_t * prediction) / pace

    def target(self, x: Tensor, x_t: Tensor, t: Tensor, process: GaussianProcess) -> Tensor:
        """u of the data x and noise eps, which x_t and x give."""
        alpha_t, sigma_t = process.coefficients(t, x_t)
        d_alpha, d_sigma, _ = (broadcast(rate, x_t) for rate in _rates(t, process.schedule))
        return d_alpha * x + d_sigma * (x_t - alpha_t * x) / sigma_t

    def gain(self, t: Tensor, schedule: Schedule) -> Tensor:
        """(alpha'_t - alpha_t sigma'_t / sigma_t)^2, of the shape of t: (alpha_t lambda'(t) / 2)^2, finite at t = 1."""
        _, sigma_t = schedule.alpha_sigma(t)
        _, _, pace = _rates(t, schedule)
        return (pace / sigma_t) ** 2


def _rates(t: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
    """alpha'_t, sigma'_t and alpha_t sigma'_t - sigma_t alpha'_t, which is positive; each of the shape of t."""
    rates = schedule.derivatives(t)
    alpha_t, sigma_t = schedule.alpha_sigma(t)
    return rates.alpha, rates.sigma, alpha_t * rates.sigma - sigma_t * rates.alpha


PARAMETRISATIONS: dict[ParametrisationName, Parametrisation] = {
    "x": X(),
    "eps": Eps(),
    "v": V(),
    "velocity": Velocity(),
}
