r"""Noise schedules: how much is destroyed at time t in [0, 1]; data at 0, noise at 1.

A variance-preserving schedule is its log-SNR (Kingma et al. 2021, "Variational Diffusion Models", eq. 3 and 4),

    lambda(t) = log(alpha_t^2 / sigma_t^2),   alpha_t^2 = sigmoid(lambda),   sigma_t^2 = sigmoid(-lambda),

and the derivatives follow from lambda':

    d alpha_t / dt = alpha_t sigma_t^2 lambda'(t) / 2,      d sigma_t / dt = -sigma_t alpha_t^2 lambda'(t) / 2.

The papers give T discrete noise levels beta_1 ... beta_T (Ho et al. 2020, "Denoising Diffusion Probabilistic
Models", section 2). Level i stands at t = i / T, where log alpha_bar is exact; between two levels it is linear
in t, that is, the noise rate is constant there. At t = 0 the log-SNR is infinite.

A new schedule gives `formula`, in float64, and `t_min`; casting, the inverse and the derivatives are here. Schedules
that end in pure noise, rectified flow and zero terminal SNR, have files of their own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from lit_medgen.batch import sent

NUM_HALVINGS = 64
"""Of [0, 1], until the inverse of a schedule is known to the last digits of float64."""


class Table:
    """Numbers in float64, copied once to each device that needs them.

    No buffer of a module: samplers need them on the CPU while the network is on a GPU, and .to(torch.bfloat16) must not
    coarsen them.
    """

    def __init__(self, numbers: Tensor) -> None:
        self._copies = {numbers.device: numbers}

    def on(self, device: torch.device) -> Tensor:
        """The numbers on a device."""
        if device not in self._copies:
            self._copies[device] = sent(self._copies[torch.device("cpu")], device)
        return self._copies[device]


@dataclass(frozen=True)
class Derivatives:
    """How fast a schedule changes with t.

    Attributes:
        log_snr: lambda'(t), negative, of the shape of t.
        alpha: d alpha_t / dt, of the shape of t.
        sigma: d sigma_t / dt, of the shape of t.
    """

    log_snr: Tensor
    alpha: Tensor
    sigma: Tensor


class Schedule(nn.Module, ABC):
    """A log-SNR that falls strictly with t in [0, 1].

    A subclass gives `formula` and `t_min`, and `inverse` where there is a closed form; one that does not preserve
    variance also gives `alpha_sigma` and `derivatives`. The log-SNR, its inverse and its derivatives are computed in
    float64 and returned in the dtype of the argument, but in float32 at least, so that autocast coarsens nothing.
    """

    t_min: float
    """The least time at which the log-SNR is finite; training and sampling stay at or above it."""

    ends_in_noise: bool = False
    """Whether alpha(1) = 0: x_1 is pure noise, its log-SNR minus infinity, and what divides by alpha(1) is refused."""

    @abstractmethod
    def formula(self, t: Tensor) -> Tensor:
        """The log-SNR at t in [0, 1]: float64 of any shape -> float64 of that shape, by differentiable operations."""

    def inverse(self, log_snr: Tensor) -> Tensor:
        """The t in [0, 1] at which `formula` is nearest to the given values, float64; here by halving [0, 1]."""
        low, high = torch.zeros_like(log_snr), torch.ones_like(log_snr)
        with torch.no_grad():
            for _ in range(NUM_HALVINGS):
                middle = (low + high) / 2
                later = self.formula(middle) > log_snr
                low, high = torch.where(later, middle, low), torch.where(later, high, middle)
        return (low + high) / 2

    @final
    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha_t^2 / sigma_t^2), of the shape of t; t of any shape in [0, 1]."""
        return at_least_float32(self.formula(t.double()), t)

    @final
    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`: t in [0, 1], of the shape of its argument."""
        return at_least_float32(self.inverse(log_snr.double()), log_snr)

    def forward(self, t: Tensor) -> Tensor:
        """The log-SNR at times t, as `log_snr` gives it."""
        return self.log_snr(t)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, each of the shape of t."""
        log_snr = self.log_snr(t)
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()

    def alpha(self, t: Tensor) -> Tensor:
        """alpha_t, what is left of the data at t; of the shape of t."""
        return self.alpha_sigma(t)[0]

    def sigma(self, t: Tensor) -> Tensor:
        """sigma_t, the standard deviation of the noise at t; of the shape of t."""
        return self.alpha_sigma(t)[1]

    def derivatives(self, t: Tensor) -> Derivatives:
        """lambda'(t) by automatic differentiation, and what follows from it; finite from `t_min` on.

        Parameters of the schedule get gradients through it unless gradients are switched off.
        """
        rate = slope(self.formula, t)
        alpha, sigma = self.alpha_sigma(t.double())
        d_alpha, d_sigma = alpha * sigma**2 * rate / 2, -sigma * alpha**2 * rate / 2
        return Derivatives(*(at_least_float32(value, t) for value in (rate, d_alpha, d_sigma)))


def slope(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """The derivative of a function of each time by itself, float64 of the shape of t, by automatic differentiation."""
    learned = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        time = t.double().clone()
        time = time if time.requires_grad else time.requires_grad_()
        (rate,) = torch.autograd.grad(function(time).sum(), time, create_graph=learned)
    return rate


def at_least_float32(value: Tensor, like: Tensor) -> Tensor:
    """The value in the dtype of `like`, but not below float32."""
    return value.to(torch.promote_types(like.dtype, torch.float32))


class DiscreteSchedule(Schedule):
    """A schedule given by the noise rates beta_1 ... beta_T of a paper.

    Args:
        num_steps: T.
    """

    def __init__(self, num_steps: int = 1000) -> None:
        super().__init__()
        if num_steps < 2:
            raise ValueError(f"num_steps is {num_steps}; a schedule needs at least 2.")
        self.num_steps = num_steps
        self.t_min = 1 / num_steps
        log_alpha_bar = torch.log1p(-self.betas()).cumsum(0)
        self.log_alpha_bar = Table(torch.cat([torch.zeros(1, dtype=torch.float64), log_alpha_bar]))
        """At t = 0, 1/T, ..., 1."""

    @abstractmethod
    def betas(self) -> Tensor:
        """The noise rates of the T levels: T, float64."""

    def formula(self, t: Tensor) -> Tensor:
        """The log-SNR at t, any shape; infinite at 0."""
        log_alpha_bar = self.log_alpha_bar_at(t)
        return log_alpha_bar - torch.log(-torch.expm1(log_alpha_bar))

    def inverse(self, log_snr: Tensor) -> Tensor:
        """The t at which the log-SNR has the given value, clamped to [0, 1]."""
        return self.time_of(nn.functional.logsigmoid(log_snr))

    def log_alpha_bar_at(self, t: Tensor) -> Tensor:
        """The logarithm of alpha_t^2 at t, float64 of any shape; linear in t between two levels."""
        level = t.clamp(0, 1) * self.num_steps
        before = level.floor().long().clamp(max=self.num_steps - 1)
        table = self.log_alpha_bar.on(t.device)
        # Not table[before]: without dimensions that is a Python number, for which the CPU waits.
        return torch.lerp(table.take(before), table.take(before + 1), level - before)

    def time_of(self, log_alpha_bar: Tensor) -> Tensor:
        """The inverse of `log_alpha_bar_at`, clamped to [0, 1]."""
        table = -self.log_alpha_bar.on(log_alpha_bar.device)  # ascending, from 0
        before = (torch.searchsorted(table, -log_alpha_bar, right=True) - 1).clamp(0, self.num_steps - 1)
        low, high = table.take(before), table.take(before + 1)
        return ((before + (-log_alpha_bar - low) / (high - low)) / self.num_steps).clamp(0, 1)


class LinearBeta(DiscreteSchedule):
    """Noise whose beta is linear in the step (Ho et al. 2020, section 4: 1e-4 to 0.02 over 1000 steps).

    Args:
        num_steps: T.
        beta_start: beta_1.
        beta_end: beta_T.
    """

    def __init__(self, num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> None:
        self.beta_start, self.beta_end = beta_start, beta_end
        super().__init__(num_steps)

    def betas(self) -> Tensor:
        """The noise rates: T, float64."""
        return torch.linspace(self.beta_start, self.beta_end, self.num_steps, dtype=torch.float64)


class ScaledLinearBeta(DiscreteSchedule):
    """Noise whose sqrt(beta) is linear in the step (the schedule of latent diffusion, Rombach et al. 2022, appendix).

    Args:
        num_steps: T.
        beta_start: beta_1.
        beta_end: beta_T.
    """

    def __init__(self, num_steps: int = 1000, beta_start: float = 0.0015, beta_end: float = 0.0195) -> None:
        self.beta_start, self.beta_end = beta_start, beta_end
        super().__init__(num_steps)

    def betas(self) -> Tensor:
        """The noise rates: T, float64."""
        root = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_steps, dtype=torch.float64)
        return root**2


class Cosine(DiscreteSchedule):
    """Noise whose alpha_bar is a squared cosine (Nichol & Dhariwal 2021, "Improved DDPM", eq. 17), betas capped.

    Args:
        num_steps: T.
        offset: the s of eq. 17, which keeps the first noise levels from being too small.
        beta_max: the cap on beta near t = 1 (section 3.2 of the paper).
    """

    def __init__(self, num_steps: int = 1000, offset: float = 0.008, beta_max: float = 0.999) -> None:
        self.offset, self.beta_max = offset, beta_max
        super().__init__(num_steps)

    def betas(self) -> Tensor:
        """The noise rates: T, float64."""
        t = torch.linspace(0, 1, self.num_steps + 1, dtype=torch.float64)
        alpha_bar = torch.cos((t + self.offset) / (1 + self.offset) * math.pi / 2) ** 2  # eq. 17, unnormalised
        return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=self.beta_max)
