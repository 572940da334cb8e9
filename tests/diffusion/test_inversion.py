"""Laws of inversion: the way from an image to noise is the way back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_medgen.batch import Condition
from lit_medgen.diffusion import DDIM, Ancestral, Cosine, DPMSolverPP2M, FlowHeun, Heun, LinearBeta, RectifiedFlow
from lit_medgen.diffusion.schedules import Schedule

SCHEDULES = [LinearBeta(), Cosine(), RectifiedFlow()]


class Normal:
    """The exact denoiser of N(0.2, 0.5^2)."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        alpha, sigma = (each.view(-1, 1, 1, 1) for each in self.schedule.alpha_sigma(t))
        gain = alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)
        return 0.2 + gain * (x_t - alpha * 0.2)


def images() -> Tensor:
    return 0.2 + 0.5 * torch.randn(64, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("make", [DDIM, Heun, FlowHeun, DPMSolverPP2M])
def test_the_error_of_there_and_back_falls_with_the_steps(make: Any, schedule: Schedule) -> None:
    errors = []
    for num_steps in (10, 40, 160):
        sampler, x = make(num_steps, "trailing" if schedule.ends_in_noise else "log_snr"), images()
        noisy = sampler.invert(Normal(schedule), x, 0.6)
        errors.append((sampler.restored(Normal(schedule), noisy, 0.6) - x).abs().max().item())
    assert errors[0] > errors[1] > errors[2] or errors[0] < 1e-12
    assert errors[1] < errors[0] / 2 or errors[0] < 1e-12
    assert errors[2] < 0.04


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_what_it_ends_at_is_as_likely_as_noise(schedule: Schedule) -> None:
    """The flow carries the distribution of the data to that at the level."""
    spacing = "trailing" if schedule.ends_in_noise else "log_snr"
    noisy = DDIM(200, spacing).invert(Normal(schedule), images(), 0.7)
    alpha, sigma = (each.item() for each in schedule.alpha_sigma(torch.tensor([0.7], dtype=torch.float64)))
    expected = (alpha**2 * images().var() + sigma**2) ** 0.5
    assert noisy.std().item() == pytest.approx(float(expected), rel=0.03)
    order = images().flatten().argsort()
    assert (noisy.flatten()[order].diff() >= -1e-9).all()


def test_samplers_with_noise_and_levels_out_of_range_are_refused() -> None:
    denoiser, x = Normal(Cosine()), images()
    with pytest.raises(ValueError, match="needs a sampler without noise"):
        Ancestral(10).invert(denoiser, x, 0.5)
    for level in (0.0, 1.5):
        with pytest.raises(ValueError, match="give a time above"):
            DDIM(10).invert(denoiser, x, level)
