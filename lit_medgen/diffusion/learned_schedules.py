r"""Noise schedules that are learned together with the denoiser (Kingma et al. 2021, "Variational Diffusion Models").

A schedule is gamma(t) = -log SNR(t), which rises from gamma_min at t = 0 to gamma_max at t = 1:

    gamma(t) = gamma_min + (gamma_max - gamma_min) level(t),      level(0) = 0,  level(1) = 1,  level'(t) > 0

The bound of the likelihood depends on the two ends, which are trained through it. On what lies between them it does not
depend in continuous time (their eq. 18), only the variance of its estimate does (appendix I.2); see `bound`. In the
authors' code the network behind gamma does not keep the ends (google-research/vdm, issue 11): here `level` is the
network's share of its own range, so that the ends hold whatever its weights are.

Unlike the schedules of discrete levels, the log-SNR is finite at t = 0: z_0 is a noisy image, and a likelihood says
what image it is.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from lit_medgen.diffusion.schedules import Schedule

MIN_SLOPE = 0.01
"""Of a learned level, as a share of a line's: sigmoids that are all flat somewhere would stop gamma there."""
GAMMA_MIN, GAMMA_MAX = -13.3, 5.0
"""Of Kingma et al. 2021, appendix B: noise of 1/255 of the range of 8-bit images, and an SNR of 1/148."""


class GammaSchedule(Schedule):
    """A schedule between two ends; see above.

    Args:
        gamma_min: -log SNR at t = 0.
        gamma_max: -log SNR at t = 1.
        learned_ends: whether the ends are parameters; else they are buffers.
    """

    t_min = 0.0

    def __init__(self, gamma_min: float = GAMMA_MIN, gamma_max: float = GAMMA_MAX, learned_ends: bool = False) -> None:
        super().__init__()
        if not -math.inf < gamma_min < gamma_max < math.inf:
            raise ValueError(
                f"gamma_min is {gamma_min} and gamma_max {gamma_max}; give two numbers, the smaller first."
            )
        ends = torch.tensor([gamma_min, math.log(gamma_max - gamma_min)])
        if learned_ends:
            self.ends = nn.Parameter(ends)
        else:
            self.register_buffer("ends", ends)

    ends: Tensor
    """gamma_min, and the logarithm of the range, so that the ends keep their order whatever is learned."""

    @abstractmethod
    def level(self, t: Tensor) -> Tensor:
        """The share of the range that gamma has covered at t: float64 of any shape -> the same, 0 at 0, 1 at 1."""

    def learns_interior(self) -> bool:
        """Whether there are parameters behind `level`."""
        return any(name != "ends" for name, _ in self.named_parameters())

    @property
    def gamma_min(self) -> Tensor:
        """gamma(0), float64, without dimensions."""
        return self.ends.double()[0]

    @property
    def span(self) -> Tensor:
        """gamma(1) - gamma(0), float64, without dimensions."""
        return self.ends.double()[1].exp()

    def formula(self, t: Tensor) -> Tensor:
        """The log-SNR, -gamma(t), in float64."""
        return -(self.gamma_min + self.span * self.level(t))


class LinearGamma(GammaSchedule):
    """A gamma linear in t (Kingma et al. 2021, appendix H): fixed, or with ends that are learned."""

    def level(self, t: Tensor) -> Tensor:
        """The time itself, as gamma is linear."""
        return t

    def inverse(self, log_snr: Tensor) -> Tensor:
        """The t at which the log-SNR has the given value, clamped to [0, 1]."""
        return ((-log_snr - self.gamma_min) / self.span).clamp(0, 1)


class MonotoneGamma(GammaSchedule):
    """A gamma that is a rising network of t: a line and sigmoids of positive weights (Kingma et al. 2021, appendix H).

    Args:
        gamma_min: -log SNR at t = 0.
        gamma_max: -log SNR at t = 1.
        learned_ends: whether the ends are learned too.
        num_features: sigmoids of t.
    """

    def __init__(
        self,
        gamma_min: float = GAMMA_MIN,
        gamma_max: float = GAMMA_MAX,
        learned_ends: bool = True,
        num_features: int = 64,
    ) -> None:
        super().__init__(gamma_min, gamma_max, learned_ends)
        if num_features < 1:
            raise ValueError(f"num_features is {num_features}; give at least 1.")
        self.line = nn.Parameter(torch.zeros(()))
        # Sigmoids whose middles are spread over [0, 1], each as wide as a few of their distances, little at first.
        self.steepness = nn.Parameter(torch.full((num_features,), float(min(num_features, 16))))
        self.middle = nn.Parameter((torch.arange(num_features) + 0.5) / num_features)
        self.height = nn.Parameter(torch.full((num_features,), -4.0 - math.log(num_features)))

    def unscaled(self, t: Tensor) -> Tensor:
        """A rising function of t in [0, 1], of any shape, float64."""
        steepness, height = (softplus(each.double()) for each in (self.steepness, self.height))
        features = torch.sigmoid(steepness * (t[..., None] - self.middle.double()))
        return softplus(self.line.double()) * t + (features * height).sum(-1)

    def level(self, t: Tensor) -> Tensor:
        """The network's share of its own range, so that the ends hold, and a little of a line."""
        ends = self.unscaled(torch.stack([torch.zeros_like(t), torch.ones_like(t)]))
        share = (self.unscaled(t) - ends[0]) / (ends[1] - ends[0])
        return (1 - MIN_SLOPE) * share + MIN_SLOPE * t


class Level(nn.Module):
    """The noise level of a time, which a network is told: gamma's share of its range."""

    def __init__(self, schedule: GammaSchedule) -> None:
        super().__init__()
        self.schedule = schedule

    def forward(self, t: Tensor) -> Tensor:
        """Levels in [0, 1], of the shape of t."""
        return self.schedule.level(t.double())
