"""Learned schedules: the ends hold and gamma rises, whatever is learned; samplers walk them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_medgen.batch import Condition
from lit_medgen.diffusion import DDIM, Ancestral, DPMSolverPP2M, GammaSchedule, LinearGamma, MonotoneGamma, Sampler


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.floats(0.01, 30.0))
def test_gamma_rises_between_its_ends_after_any_training(seed: int, size: float) -> None:
    """gamma(0), gamma(1) exact and gamma rising for weights of any kind, 30 standard deviations away among them."""
    generator = torch.Generator().manual_seed(seed)
    schedule = MonotoneGamma(-7.0, 3.0, num_features=8)
    with torch.no_grad():
        for name, parameter in schedule.named_parameters():
            if name != "ends":
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    gamma = -schedule.log_snr(torch.linspace(0, 1, 101, dtype=torch.float64)).detach()
    assert float(gamma[0]) == pytest.approx(-7, abs=1e-5)
    assert float(gamma[-1]) == pytest.approx(3, abs=1e-5)
    assert (gamma.diff() > 0).all()


def test_ends_follow_what_is_learned() -> None:
    """And keep their order, whatever a step does to them."""
    schedule = LinearGamma(-5, 5, learned_ends=True)
    with torch.no_grad():
        schedule.ends.copy_(torch.tensor([2.0, -3.0]))
    gamma = -schedule.log_snr(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(gamma, torch.tensor([2.0, 2.0 + math.exp(-3.0)]))


def test_begins_as_a_line() -> None:
    """Before training the monotone gamma is within 2 % of its range of a line, so that both begin alike."""
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    level = MonotoneGamma().level(t).detach()
    assert float((level - t).abs().max()) < 0.02


@pytest.mark.parametrize("schedule", [LinearGamma(-6, 4), MonotoneGamma(-6, 4)])
def test_inverse(schedule: GammaSchedule) -> None:
    """Time of the log-SNR at a time is that time."""
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sampler", [DDIM(40), Ancestral(200, spacing="log_snr"), DPMSolverPP2M(20)])
@pytest.mark.parametrize("schedule", [LinearGamma(-8, 5), MonotoneGamma(-8, 5)])
def test_samplers_reach_the_data(sampler: Sampler, schedule: GammaSchedule) -> None:
    """x ~ N(0.3, 0.5^2) from its exact denoiser; the log-SNR is finite at t = 0, where the last step ends."""

    class Exact:
        def __init__(self) -> None:
            self.schedule = schedule

        def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
            alpha, sigma = (each.view(-1, 1).to(x_t) for each in schedule.alpha_sigma(t))
            return 0.3 + alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * (x_t - alpha * 0.3)

    torch.manual_seed(0)
    x = sampler(Exact(), torch.randn(4000, 1))
    assert float(x.mean()) == pytest.approx(0.3, abs=0.03)
    assert float(x.std()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("ends", [(3, 3), (5, -5), (-math.inf, 3), (0, math.nan)])
def test_refuses_ends_that_are_none(ends: tuple[float, float]) -> None:
    """One line that says what to give."""
    with pytest.raises(ValueError, match=r"gamma_min is .*; give two numbers, the smaller first"):
        LinearGamma(*ends)
