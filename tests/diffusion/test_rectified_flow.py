"""Rectified flow: straight paths, shifted times, and the samplers that walk x itself.

For Gaussian data the flow is known: x_t keeps its quantile, so x_0 = MEAN + STD x_1 where x_1 is pure noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

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
    Denoiser,
    DPMSolverPP2M,
    FlowEuler,
    FlowHeun,
    Heun,
    ParametrisationName,
    RectifiedFlow,
    Sampler,
    ScaledLinearBeta,
    Schedule,
    ZeroTerminalSNR,
    resolution_shift,
    times,
)
from lit_medgen.diffusion.samplers import LOG_SNR_FLOOR, Spacing

MEAN, STD = 0.7, 0.5
PURE_NOISE: list[Schedule] = [RectifiedFlow(), RectifiedFlow(3.0), ZeroTerminalSNR(ScaledLinearBeta())]
each_schedule = pytest.mark.parametrize("schedule", PURE_NOISE, ids=["flow", "shifted_flow", "zero_snr"])
each_shift = pytest.mark.parametrize("shift", [0.3, 1.0, 3.0])


@dataclass
class Gaussian:
    """The exact denoiser of N(MEAN, STD^2)."""

    schedule: Schedule

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """E[x | x_t], b 1."""
        alpha_t, sigma_t = self.schedule.alpha_sigma(t[:, None])
        return MEAN + alpha_t * STD**2 / (alpha_t**2 * STD**2 + sigma_t**2) * (x_t - alpha_t * MEAN)


def starts() -> Tensor:
    """9 1, float64, from -2 to 2."""
    return torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]


def error(sampler: Sampler, schedule: Schedule, start: float = 1.0, stop: float = 0.0) -> float:
    """The greatest error at `stop`, from -2 to 2 at `start`; x_t keeps its distance to the mean in deviations."""
    ends = torch.tensor([start, stop], dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(ends)
    std = torch.hypot(alpha * STD, sigma)
    exact = alpha[1] * MEAN + std[1] / std[0] * (starts() - alpha[0] * MEAN)
    return float((sampler(Gaussian(schedule), starts(), start=start, stop=stop) - exact).abs().max())


# The schedule.


@each_shift
@given(t=st.floats(0, 1))
@settings(deadline=None)
def test_a_shift_of_times_is_a_shift_of_the_log_snr(shift: float, t: float) -> None:
    """alpha = 1 - tau, sigma = tau with tau = shift t / (1 + (shift - 1) t); the log-SNR falls by 2 log shift."""
    time = torch.tensor([t], dtype=torch.float64)
    tau = shift * time / (1 + (shift - 1) * time)
    assert_close(RectifiedFlow(shift).alpha_sigma(time), (1 - tau, tau), rtol=1e-12, atol=1e-12)
    if 1e-6 < t < 1 - 1e-6:
        plain, shifted = RectifiedFlow().log_snr(time), RectifiedFlow(shift).log_snr(time)
        assert_close(shifted, plain - 2 * math.log(shift), rtol=1e-12, atol=1e-12)
        assert_close(shifted, 2 * torch.log((1 - tau) / tau), rtol=1e-8, atol=1e-8)


@each_shift
def test_both_ends_are_exact_and_the_least_time_has_noise(shift: float) -> None:
    """Data at 0, pure noise at 1, sigma = 0.001 at t_min, whose log-SNR is finite."""
    schedule, ends = RectifiedFlow(shift), torch.tensor([0.0, 1.0])
    assert [value.tolist() for value in schedule.alpha_sigma(ends)] == [[1, 0], [0, 1]]
    assert schedule.log_snr(ends).tolist() == [math.inf, -math.inf]
    assert schedule.time(torch.tensor([math.inf, -math.inf])).tolist() == [0, 1]
    assert schedule.sigma(torch.tensor(schedule.t_min)).item() == pytest.approx(1e-3)
    assert schedule.log_snr(torch.tensor(schedule.t_min)).isfinite()


@each_shift
def test_the_inverse_and_the_derivatives_are_those_of_the_formula(shift: float) -> None:
    """The inverse undoes the log-SNR; derivatives agree with finite differences, and without a shift they are -1, 1."""
    schedule, step = RectifiedFlow(shift), 1e-6
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    assert_close(schedule.time(schedule.log_snr(t)), t, rtol=1e-12, atol=1e-12)
    assert_close(Schedule.inverse(schedule, schedule.log_snr(t)), t, rtol=1e-12, atol=1e-12)
    exact = schedule.derivatives(t)
    for function, derivative in (
        (schedule.log_snr, exact.log_snr),
        (schedule.alpha, exact.alpha),
        (schedule.sigma, exact.sigma),
    ):
        assert_close(derivative, (function(t + step) - function(t - step)) / (2 * step), rtol=1e-5, atol=1e-7)
    straight = RectifiedFlow().derivatives(torch.tensor([0.0, 0.3, 1.0]))
    assert (straight.alpha.tolist(), straight.sigma.tolist()) == ([-1] * 3, [1] * 3)


def test_the_shift_of_a_resolution_keeps_the_certainty_of_a_constant_image() -> None:
    """Esser et al. 2024: n pixels of one value are known to sigma / alpha / sqrt(n); the same at both sizes."""
    base, size, t = (16, 16), (32, 64), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    uncertainty = [
        schedule.sigma(t) / schedule.alpha(t) / math.sqrt(math.prod(voxels))
        for schedule, voxels in ((RectifiedFlow(), base), (RectifiedFlow(resolution_shift(size, base)), size))
    ]
    assert_close(uncertainty[0], uncertainty[1], rtol=1e-12, atol=0)
    assert resolution_shift((32, 32, 32), (8, 8, 8)) == 8
    assert resolution_shift(base, base) == 1


@pytest.mark.parametrize("shift", [0.0, -1.0, math.inf, math.nan])
def test_impossible_shifts_are_refused(shift: float) -> None:
    with pytest.raises(ValueError, match=f"shift is {shift}; give a number above 0"):
        RectifiedFlow(shift)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="give as many axes of both"):
        resolution_shift((32, 32, 32), (32, 32))
    with pytest.raises(ValueError, match="each at least 1"):
        resolution_shift((0, 32), (32, 32))


# Sampling from pure noise.

EVERY_SPACING: list[Spacing] = ["uniform", "trailing", "log_snr", "karras"]
DETERMINISTIC: dict[str, Callable[[int, Spacing], Sampler]] = {
    "ddim": DDIM,
    "2m": DPMSolverPP2M,
    "euler": FlowEuler,
    "heun": FlowHeun,
}
STOCHASTIC: dict[str, Callable[[int, Spacing], Sampler]] = {
    "ancestral": Ancestral,
    "2m_sde": partial(DPMSolverPP2M, eta=1.0),
}


@each_schedule
@pytest.mark.parametrize("spacing", EVERY_SPACING)
@pytest.mark.parametrize("make", DETERMINISTIC.values(), ids=DETERMINISTIC)
def test_many_steps_from_pure_noise_give_the_data(
    make: Callable[[int, Spacing], Sampler], spacing: Spacing, schedule: Schedule
) -> None:
    """Mean and standard deviation, that is, every quantile."""
    assert error(make(300, spacing), schedule) < 0.04


@each_schedule
@pytest.mark.parametrize("spacing", EVERY_SPACING)
@pytest.mark.parametrize("make", STOCHASTIC.values(), ids=STOCHASTIC)
def test_stochastic_samplers_start_from_pure_noise_too(
    make: Callable[[int, Spacing], Sampler], spacing: Spacing, schedule: Schedule
) -> None:
    """x_1 = 0 and no noise added give the mean."""
    x_0 = make(100, spacing)(Gaussian(schedule), torch.zeros(1, 1, dtype=torch.float64), noise=torch.zeros_like)
    assert x_0.item() == pytest.approx(MEAN, abs=0.01)


@pytest.mark.parametrize("schedule", [*PURE_NOISE, ScaledLinearBeta()], ids=["flow", "shifted", "zero_snr", "vp"])
@pytest.mark.parametrize(("make", "order"), [(FlowEuler, 1), (FlowHeun, 2)])
def test_orders_of_convergence(make: Callable[[int, Spacing], Sampler], order: int, schedule: Schedule) -> None:
    """Twice the steps divide the error by 2^order: from pure noise on, and for the flow as far as the data.

    Where variance is preserved, sigma rises from the data like sqrt(t), which even steps resolve to lower order.
    """
    start = 1.0 if schedule.ends_in_noise else 0.9
    stop = 0.0 if isinstance(schedule, RectifiedFlow) else 0.1
    coarse, fine = (error(make(num_steps, "trailing"), schedule, start, stop) for num_steps in (100, 200))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)


@each_schedule
def test_multistep_keeps_its_order_from_pure_noise_but_for_a_logarithm(schedule: Schedule) -> None:
    """Its first two steps are of first order there: one is infinitely long in log-SNR, the other comes after it."""
    coarse, fine = (error(DPMSolverPP2M(num_steps, "trailing"), schedule, stop=0.1) for num_steps in (200, 400))
    assert math.log2(coarse / fine) > 1.6


def test_few_steps_of_heun_suit_the_flow() -> None:
    """Five steps, nine evaluations, are nearer than nine of Euler."""
    assert error(FlowHeun(5), RectifiedFlow()) < 0.6 * error(FlowEuler(9), RectifiedFlow())
    assert error(FlowHeun(5), RectifiedFlow()) < 0.1


@each_shift
def test_euler_along_the_flow_is_the_explicit_rule(shift: float) -> None:
    """x_s = x_t + (tau_s - tau_t) u, and so DDIM at the same times."""
    denoiser, x = Gaussian(RectifiedFlow(shift)), starts()
    grid = torch.linspace(1, 0, 8, dtype=torch.float64)
    tau = denoiser.schedule.sigma(grid)
    for i in range(7):
        x_hat = denoiser(x, grid[i].expand(len(x)), Condition())
        x = x + (tau[i + 1] - tau[i]) * (x - x_hat) / tau[i]  # x_t = x + tau (eps - x)
    assert_close(FlowEuler(7)(denoiser, starts()), x, rtol=1e-10, atol=1e-10)
    assert torch.equal(FlowEuler(7)(denoiser, starts()), DDIM(7, "trailing")(denoiser, starts()))


def test_heun_along_the_flow_is_the_rule_of_its_name() -> None:
    """The mean of the velocities at both ends of a step; Euler's rule in the last."""
    denoiser, x = Gaussian(RectifiedFlow()), starts()
    grid = torch.linspace(1, 0, 8, dtype=torch.float64)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return (x - denoiser(x, t.expand(len(x)), Condition())) / t

    for t, s in pairwise(grid):
        slope = velocity(x, t)
        if s > 0:
            slope = (slope + velocity(x + (s - t) * slope, s)) / 2
        x = x + (s - t) * slope
    assert_close(FlowHeun(7)(denoiser, starts()), x, rtol=1e-10, atol=1e-10)


@each_schedule
@pytest.mark.parametrize("name", ["x", "v", "velocity"])
@pytest.mark.parametrize("make", [FlowEuler, FlowHeun, DPMSolverPP2M])
def test_networks_that_know_the_image_give_it(
    make: Callable[[int], Sampler], name: ParametrisationName, schedule: Schedule
) -> None:
    """In float32, from pure noise, in one step and in four: nothing is divided by alpha(1) = 0."""
    image = torch.linspace(-1, 1, 6).view(1, 1, 2, 3)

    class Knows(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
            return denoiser.target(image.expand_as(x_t), x_t, t)

    denoiser = Denoiser(Knows(), schedule, name)
    x_1 = torch.randn(2, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    for num_steps in (1, 4):
        assert_close(make(num_steps)(denoiser, x_1), image.expand_as(x_1), rtol=0, atol=1e-4)


@each_schedule
@pytest.mark.parametrize("num_steps", [1, 2, 3, 20])
@pytest.mark.parametrize("spacing", EVERY_SPACING)
def test_every_spacing_begins_with_pure_noise(spacing: Spacing, num_steps: int, schedule: Schedule) -> None:
    """Times fall strictly from 1, where the mean image comes in, to 0; even in log-SNR only from the floor on."""
    grid = times(schedule, num_steps, spacing)
    assert grid.shape == (num_steps + 1,)
    assert (grid[0], grid[-1]) == (1, 0)
    assert (grid.diff() < 0).all()
    if spacing in ("log_snr", "karras") and num_steps > 1:
        assert schedule.log_snr(grid[1]).item() == pytest.approx(LOG_SNR_FLOOR)


@each_schedule
def test_a_sampler_that_divides_by_alpha_is_refused_at_pure_noise_alone(schedule: Schedule) -> None:
    """Heun's coordinate x / alpha is infinite at t = 1; from later on it is finite."""
    with pytest.raises(ValueError, match=r"Heun, which divides by alpha\(1\): it is 0 with schedule .*; give FlowHeun"):
        Heun(10)(Gaussian(schedule), starts())
    assert error(Heun(100), schedule, start=0.9) < 0.01
    Heun(10).check(ScaledLinearBeta())


@each_schedule
@pytest.mark.parametrize("make", (DETERMINISTIC | STOCHASTIC).values(), ids=DETERMINISTIC | STOCHASTIC)
def test_methods_are_told_of_spacings_that_hurry_through_the_noise(
    make: Callable[[int, Spacing], Sampler], schedule: Schedule
) -> None:
    """Where samples get their brightness: from x_1 to log-SNR -10.5; a preview may, a method's own sampler may not."""
    for spacing in EVERY_SPACING:
        make(10, spacing).check(ScaledLinearBeta())
        if spacing in ("log_snr", "karras"):
            with pytest.raises(ValueError, match=f"spacing is '{spacing}'.* below log-SNR -10.5.*; give 'trailing'"):
                make(10, spacing).check(schedule)
        else:
            make(10, spacing).check(schedule)


@pytest.mark.parametrize("schedule", [*PURE_NOISE, ScaledLinearBeta()], ids=["flow", "shifted", "zero_snr", "vp"])
def test_schedules_say_whether_they_end_in_noise(schedule: Schedule) -> None:
    assert schedule.ends_in_noise == (schedule.alpha(torch.tensor(1.0)) == 0)
