"""Schedules: the papers' noise levels at the discrete times, a strictly falling log-SNR between them, its inverse."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from lit_medgen.diffusion import Cosine, LinearBeta, ScaledLinearBeta, Schedule
from lit_medgen.diffusion.schedules import DiscreteSchedule

Array = NDArray[np.float64]
Kind = Callable[[int], DiscreteSchedule]


def linear_betas(num_steps: int) -> Array:
    """Ho et al. 2020, section 4."""
    return np.linspace(1e-4, 0.02, num_steps)


def scaled_linear_betas(num_steps: int) -> Array:
    """Rombach et al. 2022, appendix."""
    return np.linspace(np.sqrt(0.0015), np.sqrt(0.0195), num_steps) ** 2


def cosine_alpha_bar(t: Array) -> Array:
    """Nichol & Dhariwal 2021, eq. 17."""
    return np.asarray(np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2)


def cosine_betas(num_steps: int) -> Array:
    """Nichol & Dhariwal 2021, section 3.2: capped at 0.999."""
    alpha_bar = cosine_alpha_bar(np.arange(num_steps + 1) / num_steps)
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


PAPERS: dict[Kind, Callable[[int], Array]] = {
    LinearBeta: linear_betas,
    ScaledLinearBeta: scaled_linear_betas,
    Cosine: cosine_betas,
}
each_kind = pytest.mark.parametrize("kind", list(PAPERS))


def discrete_times(num_steps: int) -> torch.Tensor:
    """T, float64: 1/T, ..., 1."""
    return torch.arange(1, num_steps + 1, dtype=torch.float64) / num_steps


@each_kind
@pytest.mark.parametrize("num_steps", [2, 50, 1000])
def test_the_papers_noise_levels_stand_at_the_discrete_times(kind: Kind, num_steps: int) -> None:
    """alpha_t^2 = prod (1 - beta_i) and sigma_t^2 = 1 - alpha_t^2 at t = i / T."""
    alpha_bar = np.cumprod(1 - PAPERS[kind](num_steps))
    alpha_t, sigma_t = kind(num_steps).alpha_sigma(discrete_times(num_steps))
    np.testing.assert_allclose(alpha_t.square().numpy(), alpha_bar, rtol=1e-10)
    np.testing.assert_allclose(sigma_t.square().numpy(), 1 - alpha_bar, rtol=1e-10)


def test_cosine_is_a_squared_cosine_but_for_the_capped_last_level() -> None:
    """The product of the uncapped betas telescopes to eq. 17."""
    t = discrete_times(1000)[:-1]
    alpha_t, _ = Cosine().alpha_sigma(t)
    np.testing.assert_allclose(alpha_t.square().numpy(), cosine_alpha_bar(t.numpy()), rtol=1e-10)


@each_kind
@given(t=st.floats(0, 1, exclude_min=True))
@settings(deadline=None)
def test_alpha_squared_plus_sigma_squared_is_one(kind: Kind, t: float) -> None:
    alpha_t, sigma_t = kind(1000).alpha_sigma(torch.tensor([t], dtype=torch.float64))
    torch.testing.assert_close(alpha_t**2 + sigma_t**2, torch.ones_like(alpha_t), rtol=0, atol=1e-14)


@each_kind
@pytest.mark.parametrize("num_steps", [7, 1000])
def test_log_snr_falls_strictly_and_without_jumps(kind: Kind, num_steps: int) -> None:
    """It falls between any two times, and has one limit at every level from both sides."""
    schedule = kind(num_steps)
    dense = schedule.log_snr(torch.linspace(1e-4, 1, 30_001, dtype=torch.float64))
    assert (dense.diff() < 0).all()
    level = discrete_times(num_steps)
    for nudge in (-1e-10, 1e-10):
        torch.testing.assert_close(schedule.log_snr(level + nudge), schedule.log_snr(level), rtol=0, atol=1e-5)


@each_kind
def test_the_noise_rate_is_constant_between_two_levels(kind: Kind) -> None:
    """log alpha_bar halfway is the mean of its neighbours'."""
    level = torch.cat([torch.zeros(1, dtype=torch.float64), discrete_times(100)])
    schedule = kind(100)
    log_alpha_bar = nn.functional.logsigmoid(schedule.log_snr(level))
    halfway = nn.functional.logsigmoid(schedule.log_snr((level[1:] + level[:-1]) / 2))
    torch.testing.assert_close(halfway, (log_alpha_bar[1:] + log_alpha_bar[:-1]) / 2, rtol=1e-10, atol=0)


@each_kind
@given(t=st.floats(1e-6, 1))
@settings(deadline=None)
def test_time_inverts_log_snr(kind: Kind, t: float) -> None:
    schedule, time = kind(1000), torch.tensor([t], dtype=torch.float64)
    log_snr = schedule.log_snr(time)
    torch.testing.assert_close(schedule.time(log_snr), time, rtol=1e-9, atol=0)
    torch.testing.assert_close(schedule.log_snr(schedule.time(log_snr)), log_snr, rtol=0, atol=1e-8)


@each_kind
def test_data_is_untouched_at_time_zero(kind: Kind) -> None:
    """log-SNR is infinite at 0, finite from t_min = 1 / T on, and the inverse agrees, clamped to [0, 1]."""
    schedule, zero = kind(1000), torch.zeros(1)
    assert schedule.log_snr(zero).item() == float("inf")
    assert [value.item() for value in schedule.alpha_sigma(zero)] == [1.0, 0.0]
    assert schedule.t_min == 1 / 1000
    assert schedule.log_snr(torch.tensor([schedule.t_min, 1.0])).isfinite().all()
    assert schedule.time(torch.tensor([float("inf"), 100.0, -100.0])).tolist() == pytest.approx([0, 0, 1], abs=1e-12)


@each_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_moving_to_another_dtype_does_not_coarsen_the_table(kind: Kind, dtype: torch.dtype) -> None:
    """Neither `.to` of a module that holds the schedule nor autocast changes a single bit."""
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    expected = kind(1000).log_snr(t)
    holder = nn.ModuleDict({"schedule": kind(1000), "layer": nn.Linear(1, 1)}).to(dtype)
    assert torch.equal(holder["schedule"](t), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kind(1000).log_snr(t), expected)


@each_kind
@pytest.mark.parametrize(
    ("given_dtype", "returned"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_results_are_float32_at_least(kind: Kind, given_dtype: torch.dtype, returned: torch.dtype) -> None:
    schedule, t = kind(1000), torch.tensor([0.25, 0.5], dtype=given_dtype)  # both exact in bfloat16
    assert {value.dtype for value in (schedule.log_snr(t), schedule.time(t), *schedule.alpha_sigma(t))} == {returned}
    torch.testing.assert_close(schedule.log_snr(t).double(), schedule.log_snr(t.double()), rtol=1e-6, atol=0)


class Line(Schedule):
    """A log-SNR that falls from 13 to -5 as rate does (Kingma et al. 2021); only its formula is given."""

    t_min = 0.0

    def __init__(self, rate: float = 18.0) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=torch.float64))

    def formula(self, t: Tensor) -> Tensor:
        """A line."""
        return 13.0 - self.rate * t


class Bent(LinearBeta):
    """A schedule of the papers without its own inverse."""

    inverse = Schedule.inverse


@pytest.mark.parametrize("schedule", [Line(), Bent(1000), Bent(7)])
@given(t=st.floats(1e-6, 1))
@settings(deadline=None)
def test_a_schedule_that_gives_its_formula_alone_is_inverted(schedule: Schedule, t: float) -> None:
    time = torch.tensor([t], dtype=torch.float64)
    torch.testing.assert_close(schedule.time(schedule.log_snr(time)), time, rtol=1e-8, atol=1e-12)
    beyond = torch.tensor([float("inf"), 1e3, -1e3])
    torch.testing.assert_close(schedule.time(beyond), torch.tensor([0.0, 0.0, 1.0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", [Line(), *(kind(50) for kind in PAPERS)], ids=lambda each: type(each).__name__)
def test_derivatives_are_those_of_finite_differences(schedule: Schedule) -> None:
    """Between the levels, at whose times the derivative of a discrete schedule jumps."""
    t, step = (torch.arange(50, dtype=torch.float64)[1:] + 0.37) / 50, 1e-6
    exact = schedule.derivatives(t)
    for function, derivative in (
        (schedule.log_snr, exact.log_snr),
        (schedule.alpha, exact.alpha),
        (schedule.sigma, exact.sigma),
    ):
        difference = (function(t + step) - function(t - step)) / (2 * step)
        torch.testing.assert_close(derivative, difference, rtol=1e-5, atol=1e-7)


def test_derivatives_need_no_gradients_and_keep_the_dtype() -> None:
    """They work in sampling and validation, where PyTorch keeps none, and count as float32 in half precision."""
    schedule, t = Cosine(), torch.tensor([0.25, 0.5])
    expected = schedule.derivatives(t)
    with torch.inference_mode():
        found = Cosine().derivatives(t.clone())
    torch.testing.assert_close(found.log_snr, expected.log_snr, rtol=0, atol=0)
    assert schedule.derivatives(t.bfloat16()).alpha.dtype == torch.float32
    assert schedule.derivatives(torch.tensor([schedule.t_min])).sigma.isfinite().all()


def test_a_learned_schedule_gets_gradients_through_its_derivative() -> None:
    """lambda'(t) = -rate, so its gradient with respect to the rate is -1."""
    schedule = Line()
    schedule.derivatives(torch.tensor([0.3])).log_snr.sum().backward()
    assert schedule.rate.grad is not None
    assert schedule.rate.grad.item() == -1


def test_a_schedule_of_one_level_is_refused() -> None:
    with pytest.raises(ValueError, match="num_steps is 1"):
        LinearBeta(1)
