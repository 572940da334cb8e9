"""Laws of reconstructions of noised data, which tell what a diffusion model was not trained on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lit_medgen.batch import Condition
from lit_medgen.diffusion import DPMSolverPP2M, Heun, LinearBeta, RectifiedFlow
from lit_medgen.diffusion.reconstruction import LOG_SNRS, reconstructions
from lit_medgen.diffusion.schedules import Cosine, Schedule
from lit_medgen.seeds import SeededNoise

MEAN, STD = 0.2, 0.5


class Exact:
    """The exact denoiser of N(MEAN, STD^2)."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        alpha, sigma = (each.view(-1, 1, 1) for each in self.schedule.alpha_sigma(t))
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        return MEAN + gain * (x_t - alpha * MEAN)


def errors(shift: float, schedule: Schedule, num_steps: int = 200) -> Tensor:
    """The mean squared error at each level, of images of one grey value so far from the mean of the data."""
    x = torch.full((16, 1, 256), MEAN + shift, dtype=torch.float64)
    made = reconstructions(DPMSolverPP2M(num_steps), Exact(schedule), x, Condition(), SeededNoise(range(16)).like)
    return torch.stack([(x_0 - x).square().mean() for x_0 in made])


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(), RectifiedFlow()], ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("shift", [0.0, 0.5, 1.5])
def test_the_error_is_that_of_the_flow_of_a_normal_distribution(schedule: Schedule, shift: float) -> None:
    """The flow scales deviations by STD / std of x_t, so that x' - x = rho (alpha d + sigma eps) - d."""
    snr = torch.tensor(LOG_SNRS, dtype=torch.float64).exp()
    alpha, sigma = (snr / (1 + snr)).sqrt(), (1 / (1 + snr)).sqrt()
    if isinstance(schedule, RectifiedFlow):  # alpha + sigma = 1 there
        alpha, sigma = (part / (alpha + sigma) for part in (alpha, sigma))
    rho = STD / (alpha**2 * STD**2 + sigma**2).sqrt()
    expected = (rho * alpha - 1) ** 2 * shift**2 + rho**2 * sigma**2
    torch.testing.assert_close(errors(shift, schedule), expected, rtol=0.1, atol=2e-3)


def test_what_is_further_from_the_data_comes_back_worse_at_every_level() -> None:
    found = torch.stack([errors(shift, Cosine()) for shift in (0.0, 0.5, 1.0, 2.0)])
    assert (found.diff(dim=0) > 0).all()


def test_without_noise_data_comes_back() -> None:
    """With x_t = alpha x at little noise, the way back is x but for what the denoiser shrinks."""
    x = MEAN + STD * torch.randn(4, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = reconstructions(Heun(50), Exact(Cosine()), x, Condition(), torch.zeros_like, log_snrs=(8.0,))
    torch.testing.assert_close(next(iter(made)), x, atol=1e-3, rtol=0)
