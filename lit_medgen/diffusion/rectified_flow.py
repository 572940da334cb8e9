r"""Rectified flow: a straight line from the data to the noise.

    x_t = alpha_t x + sigma_t eps,   alpha_t = 1 - tau,   sigma_t = tau,   tau = shift t / (1 + (shift - 1) t)

Without a shift (1) tau = t and the velocity is eps - x (Liu et al. 2023, "Flow Straight and Fast", eq. 1). The larger
an image, the more noise it takes to destroy it, so a shift above 1 spends more times at high noise (Esser et al. 2024,
"Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", eq. 23). It is a shift of the log-SNR:

    lambda(t) = 2 log((1 - t) / t) - 2 log shift
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_medgen.diffusion.schedules import Derivatives, Schedule, at_least_float32

SIGMA_MIN = 1e-3
"""sigma at t_min: the least noise that is trained on."""


class RectifiedFlow(Schedule):
    """Straight paths: alpha = 1 - t and sigma = t, with times shifted towards the noise; alpha(1) = 0.

    Predict "velocity" (or "v", "x") with it; `FlowEuler` and `FlowHeun` walk it.

    Args:
        shift: above 1 for images larger than those that the times suit: `resolution_shift`. MAISI takes 1.4 for 3D
            latents, Stable Diffusion 3 takes 3 at 1024 x 1024 pixels.
    """

    ends_in_noise = True

    def __init__(self, shift: float = 1.0) -> None:
        super().__init__()
        if not (0 < shift < math.inf):
            raise ValueError(f"shift is {shift}; give a number above 0, 1 for none.")
        self.shift = float(shift)
        self.t_min = SIGMA_MIN / (self.shift - (self.shift - 1) * SIGMA_MIN)

    def formula(self, t: Tensor) -> Tensor:
        """The log-SNR at t, any shape; infinite at 0 and 1."""
        return 2 * (torch.log1p(-t) - torch.log(t) - math.log(self.shift))

    def inverse(self, log_snr: Tensor) -> Tensor:
        """The t at which the log-SNR has the given value."""
        return torch.sigmoid(-log_snr / 2 - math.log(self.shift))

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t = 1 - tau and sigma_t = tau, each of the shape of t."""
        time = t.double()
        scale = 1 + (self.shift - 1) * time
        return at_least_float32((1 - time) / scale, t), at_least_float32(self.shift * time / scale, t)

    def derivatives(self, t: Tensor) -> Derivatives:
        """In closed form; those of alpha and sigma are finite at all times, that of the log-SNR is not at 0 and 1."""
        time = t.double()
        pace = self.shift / (1 + (self.shift - 1) * time) ** 2  # d tau / dt
        return Derivatives(*(at_least_float32(value, t) for value in (-2 / (time * (1 - time)), -pace, pace)))


def resolution_shift(size: Sequence[int], base: Sequence[int]) -> float:
    """The shift of `RectifiedFlow` for images (or latents) of a size whose times were right at a base size.

    sqrt(m / n) for m and n voxels (Esser et al. 2024, eq. 23): by then x_t is as uncertain at both sizes.

    Args:
        size: voxels along each axis.
        base: voxels along each axis where no shift is needed; of as many axes.
    """
    if len(size) != len(base) or min(*size, *base) < 1:
        raise ValueError(
            f"size is {tuple(size)} and base is {tuple(base)}; give as many axes of both, each at least 1."
        )
    return math.sqrt(math.prod(size) / math.prod(base))
