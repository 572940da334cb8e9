r"""Zero terminal SNR: a discrete schedule rescaled so that nothing of the data is left at t = 1.

The papers' schedules leave a little: x_1 of training still shows the mean brightness, x_1 of sampling does not, so
samples cannot be very bright or dark. Lin et al. 2024 ("Common Diffusion Noise Schedules and Sample Steps are Flawed",
algorithm 1) shift alpha so that alpha(1) = 0, and scale it so that alpha(1 / T) is kept:

    alpha_t <- (alpha_t - alpha_1) alpha_{1/T} / (alpha_{1/T} - alpha_1)   for t >= 1 / T

Here t is continuous; before 1 / T, where the formula would end above 1, the schedule stays as it was.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_medgen.diffusion.schedules import Derivatives, DiscreteSchedule, Schedule, at_least_float32, slope


class ZeroTerminalSNR(Schedule):
    """A discrete schedule whose alpha(1) is exactly 0 (Lin et al. 2024, algorithm 1).

    What says nothing of the data at t = 1, divides by alpha(1) or takes few steps near it is refused: a network that
    predicts eps, `Heun`, the spacings log_snr and karras.

    Args:
        schedule: the schedule that is rescaled.
    """

    ends_in_noise = True

    def __init__(self, schedule: DiscreteSchedule) -> None:
        super().__init__()
        self.schedule, self.t_min = schedule, schedule.t_min

    def formula(self, t: Tensor) -> Tensor:
        """The log-SNR at t, any shape; infinite at 0 and 1."""
        log_alpha = torch.log(self.rescaled(t))
        return 2 * log_alpha - torch.log(-torch.expm1(2 * log_alpha))

    def rescaled(self, t: Tensor) -> Tensor:
        """alpha_t, float64 of any shape."""
        log_alpha = self.schedule.log_alpha_bar_at(t) / 2
        first, last = self._ends(t)
        shifted = last.exp() * torch.expm1(log_alpha - last)  # alpha_t - alpha_1, exactly 0 at t = 1
        return torch.where(log_alpha > first, log_alpha.exp(), shifted / -torch.expm1(last - first))

    def inverse(self, log_snr: Tensor) -> Tensor:
        """The t at which the log-SNR has the given value, clamped to [0, 1]."""
        log_alpha = nn.functional.logsigmoid(log_snr) / 2
        first, last = self._ends(log_snr)
        shifted = log_alpha.exp() * -torch.expm1(last - first)
        own = last + torch.log1p(shifted / last.exp())
        return self.schedule.time_of(2 * torch.where(log_alpha > first, log_alpha, own))

    def derivatives(self, t: Tensor) -> Derivatives:
        """By automatic differentiation of alpha, which stays finite at t = 1."""
        alpha, sigma = self.alpha_sigma(t.double())
        d_alpha = slope(self.rescaled, t)
        d_sigma = -alpha * d_alpha / sigma
        values = 2 * d_alpha / (alpha * sigma**2), d_alpha, d_sigma
        return Derivatives(*(at_least_float32(value, t) for value in values))

    def _ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """log alpha of the schedule that is rescaled at 1 / T and at 1, without dimensions, on the device of `like`."""
        table = self.schedule.log_alpha_bar.on(like.device)
        return table[1] / 2, table[-1] / 2
