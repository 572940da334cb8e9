r"""Noise schedules: how much is destroyed at time t in [0, 1]; data at 0, noise at 1.

A variance-preserving schedule is its log-SNR,

    lambda(t) = log(alpha_t^2 / sigma_t^2),   alpha_t^2 = sigmoid(lambda),   sigma_t^2 = sigmoid(-lambda).

The papers give T discrete noise levels beta_1 ... beta_T (Ho et al. 2020, "Denoising Diffusion Probabilistic
Models", section 2). Level i stands at t = i / T, where log alpha_bar is exact; between two levels it is linear
in t, that is, the noise rate is constant there. At t = 0 the log-SNR is infinite.

Everything is computed in float64 and returned in at least float32, whatever the autocast dtype.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lit_medgen.batch import sent


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


class Schedule(nn.Module, ABC):
    """A monotone log-SNR over t in [0, 1], with its inverse."""

    t_min: float
    """The least time at which the log-SNR is finite; training and sampling stay at or above it."""

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha_t^2 / sigma_t^2); t of any shape in [0, 1]."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`."""

    def forward(self, t: Tensor) -> Tensor:
        """The log-SNR, as `log_snr`."""
        return self.log_snr(t)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, each of the shape of t."""
        log_snr = self.log_snr(t)
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()


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
        """T, float64: the noise rates of the T levels."""

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha_t^2 / sigma_t^2); t of any shape in [0, 1]; infinite at 0."""
        place = t.double().clamp(0, 1) * self.num_steps
        left = place.floor().long().clamp(max=self.num_steps - 1)
        table = self.log_alpha_bar.on(t.device)
        # Not table[left]: without dimensions that is a Python number, for which the CPU waits.
        log_alpha_bar = torch.lerp(table.take(left), table.take(left + 1), place - left)
        log_snr = log_alpha_bar - torch.log(-torch.expm1(log_alpha_bar))
        return log_snr.to(torch.promote_types(t.dtype, torch.float32))

    def time(self, log_snr: Tensor) -> Tensor:
        """The t at which the log-SNR has the given value, clamped to [0, 1]."""
        log_alpha_bar = nn.functional.logsigmoid(log_snr.double())
        table = -self.log_alpha_bar.on(log_snr.device)  # ascending, from 0
        left = (torch.searchsorted(table, -log_alpha_bar, right=True) - 1).clamp(0, self.num_steps - 1)
        low, high = table.take(left), table.take(left + 1)
        place = (left + (-log_alpha_bar - low) / (high - low)) / self.num_steps
        return place.clamp(0, 1).to(torch.promote_types(log_snr.dtype, torch.float32))


class LinearBeta(DiscreteSchedule):
    """beta linear in the step (Ho et al. 2020, section 4: 1e-4 to 0.02 over 1000 steps).

    Args:
        num_steps: T.
        beta_start: beta_1.
        beta_end: beta_T.
    """

    def __init__(self, num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> None:
        self.beta_start, self.beta_end = beta_start, beta_end
        super().__init__(num_steps)

    def betas(self) -> Tensor:
        """T, float64."""
        return torch.linspace(self.beta_start, self.beta_end, self.num_steps, dtype=torch.float64)


class ScaledLinearBeta(DiscreteSchedule):
    """sqrt(beta) linear in the step (the schedule of latent diffusion, Rombach et al. 2022, appendix).

    Args:
        num_steps: T.
        beta_start: beta_1.
        beta_end: beta_T.
    """

    def __init__(self, num_steps: int = 1000, beta_start: float = 0.0015, beta_end: float = 0.0195) -> None:
        self.beta_start, self.beta_end = beta_start, beta_end
        super().__init__(num_steps)

    def betas(self) -> Tensor:
        """T, float64."""
        root = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_steps, dtype=torch.float64)
        return root**2


class Cosine(DiscreteSchedule):
    """alpha_bar a squared cosine (Nichol & Dhariwal 2021, "Improved DDPM", eq. 17), betas capped.

    Args:
        num_steps: T.
        offset: the s of eq. 17, which keeps the first noise levels from being too small.
        beta_max: the cap on beta near t = 1 (section 3.2 of the paper).
    """

    def __init__(self, num_steps: int = 1000, offset: float = 0.008, beta_max: float = 0.999) -> None:
        self.offset, self.beta_max = offset, beta_max
        super().__init__(num_steps)

    def betas(self) -> Tensor:
        """T, float64."""
        t = torch.linspace(0, 1, self.num_steps + 1, dtype=torch.float64)
        alpha_bar = torch.cos((t + self.offset) / (1 + self.offset) * math.pi / 2) ** 2  # eq. 17, unnormalised
        return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=self.beta_max)
