"""Zero terminal SNR: the rescaled schedule is that of its paper, and samples have the brightness of the data.

What is refused with it stands with what refuses: parametrisations in test_denoisers, samplers in test_rectified_flow.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from lit_medgen.batch import Condition
from lit_medgen.diffusion import (
    DDIM,
    Ancestral,
    Cosine,
    DPMSolverPP2M,
    FlowEuler,
    FlowHeun,
    LinearBeta,
    Sampler,
    ScaledLinearBeta,
    Schedule,
    ZeroTerminalSNR,
)
from lit_medgen.diffusion.samplers import Spacing
from lit_medgen.diffusion.schedules import DiscreteSchedule

SCHEDULES = {kind.__name__: kind() for kind in (LinearBeta, ScaledLinearBeta, Cosine)}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


@pytest.mark.parametrize("num_steps", [2, 7, 1000])
@pytest.mark.parametrize("kind", [LinearBeta, ScaledLinearBeta, Cosine])
def test_all_levels_are_those_of_the_paper(kind: type[DiscreteSchedule], num_steps: int) -> None:
    """Lin et al. 2024, algorithm 1, from the betas; the first level is kept."""
    root = (1 - kind(num_steps).betas()).cumprod(0).sqrt()
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])
    t = torch.arange(1, num_steps + 1, dtype=torch.float64) / num_steps
    alpha, sigma = ZeroTerminalSNR(kind(num_steps)).alpha_sigma(t)
    assert_close(alpha, expected, rtol=1e-9, atol=1e-12)
    assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=0, atol=1e-14)


@each_schedule
@pytest.mark.parametrize("shape", [(), (1,), (2, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_nothing_of_the_data_is_left_at_the_end(
    schedule: DiscreteSchedule, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """alpha(1) is 0 and sigma(1) is 1, exactly; a bit of the data is left just before."""
    zero, one = ZeroTerminalSNR(schedule).alpha_sigma(torch.ones(shape, dtype=dtype))
    assert (zero == 0).all()
    assert (one == 1).all()
    assert schedule.alpha(torch.tensor(1.0)) > 0
    assert ZeroTerminalSNR(schedule).alpha(torch.tensor(1 - 1e-7, dtype=torch.float64)) > 0


@each_schedule
def test_it_falls_strictly_without_jumps_from_one(schedule: DiscreteSchedule) -> None:
    """Below 1 / T, where the paper has no levels, it is the schedule that is rescaled."""
    rescaled, t_min = ZeroTerminalSNR(schedule), schedule.t_min
    t = torch.linspace(0, 1, 30_001, dtype=torch.float64)
    assert (rescaled.alpha(t).diff() < 0).all()
    assert rescaled.alpha(t[0]) == 1
    below = torch.linspace(t_min / 100, t_min, 20, dtype=torch.float64)
    assert_close(rescaled.log_snr(below), schedule.log_snr(below), rtol=1e-9, atol=0)
    around = torch.tensor([t_min - 1e-12, t_min + 1e-12], dtype=torch.float64)
    assert_close(*rescaled.log_snr(around), rtol=1e-7, atol=0)


@each_schedule
@given(t=st.floats(1e-6, 1))
@settings(deadline=None, max_examples=50)
def test_time_inverts_log_snr(schedule: DiscreteSchedule, t: float) -> None:
    rescaled, time = ZeroTerminalSNR(schedule), torch.tensor([t], dtype=torch.float64)
    assert_close(rescaled.time(rescaled.log_snr(time)), time, rtol=1e-8, atol=1e-12)


@each_schedule
def test_derivatives_are_those_of_finite_differences_and_finite_at_the_end(schedule: DiscreteSchedule) -> None:
    rescaled, step = ZeroTerminalSNR(schedule), 1e-7
    t = (torch.arange(0, 1000, 9, dtype=torch.float64) + 0.37) / 1000
    exact = rescaled.derivatives(t)
    for function, derivative in (
        (rescaled.log_snr, exact.log_snr),
        (rescaled.alpha, exact.alpha),
        (rescaled.sigma, exact.sigma),
    ):
        assert_close(derivative, (function(t + step) - function(t - step)) / (2 * step), rtol=1e-4, atol=1e-6)
    end = rescaled.derivatives(torch.ones(1))
    assert end.alpha < 0
    assert end.sigma == 0


@dataclass
class Trained:
    """What the best network on a schedule makes of images of one brightness, BRIGHT and noise within, b n.

    It was trained on x_1 = alpha_1 x + sigma_1 eps, whose mean tells the brightness unless alpha_1 = 0.
    """

    schedule: Schedule

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """E[x | x_t] where brightness is N(0, 1), the same for all n pixels, and each pixel N(brightness, 0.1^2)."""
        alpha, sigma = self.schedule.alpha_sigma(t[:, None])
        noise, n = alpha**2 * 0.1**2 + sigma**2, x_t.shape[1]
        brightness = alpha * n / (alpha**2 * n + noise) * x_t.mean(1, keepdim=True)
        return brightness + alpha * 0.1**2 / noise * (x_t - alpha * brightness)


def brightness_spread(sampler: Sampler, schedule: Schedule, num_pixels: int) -> float:
    """Standard deviation of the mean brightness of samples, 1 in the data; from noise, whose mean is 1 / sqrt(n)."""
    x_1 = torch.randn(1, num_pixels, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_1 = x_1 - x_1.mean() + num_pixels**-0.5  # one standard deviation of the mean of noise
    return sampler(Trained(schedule), x_1, noise=torch.zeros_like).mean().item()


@pytest.mark.parametrize("sampler", [DDIM(400, "trailing"), DPMSolverPP2M(100, "uniform"), FlowHeun(200)])
def test_samples_are_as_bright_and_dark_as_the_data(sampler: Sampler) -> None:
    """64 x 64 pixels: the papers' schedule gives four fifths of the data's spread, the rescaled one all of it.

    The mean of x_1 is alpha_1 wide in training beside the 1 / sqrt(n) of noise, which is all that samples start from.
    """
    schedule, num_pixels = ScaledLinearBeta(), 64**2
    lost = (1 + schedule.alpha(torch.tensor(1.0)).item() ** 2 * num_pixels) ** -0.5
    assert lost < 0.8
    assert brightness_spread(sampler, schedule, num_pixels) == pytest.approx(lost, rel=0.03)
    assert brightness_spread(sampler, ZeroTerminalSNR(schedule), num_pixels) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("spacing", ["log_snr", "karras"])
def test_spacings_that_hurry_through_the_noise_lose_brightness(spacing: Spacing) -> None:
    """Why `Sampler.check` refuses them: however many steps, 5 % of the spread is lost on the way to the floor."""
    assert brightness_spread(DPMSolverPP2M(400, spacing), ZeroTerminalSNR(ScaledLinearBeta()), 64**2) < 0.96


@pytest.mark.parametrize("mean", [-0.9, 0.9])
@pytest.mark.parametrize("sampler", [DDIM(10, "trailing"), Ancestral(10), DPMSolverPP2M(10), FlowEuler(10)])
def test_a_mean_that_x_1_does_not_show_comes_in_with_the_first_step(sampler: Sampler, mean: float) -> None:
    """An exact denoiser of images around one brightness, started from noise without any."""

    class Around(nn.Module):
        schedule = ZeroTerminalSNR(Cosine())

        def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
            alpha, sigma = self.schedule.alpha_sigma(t[:, None])
            return mean + alpha * 0.1**2 / (alpha**2 * 0.1**2 + sigma**2) * (x_t - alpha * mean)

    x_1 = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    assert sampler(Around(), x_1, noise=torch.zeros_like).mean().item() == pytest.approx(mean, abs=1e-3)
