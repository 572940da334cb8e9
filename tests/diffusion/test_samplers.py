"""Samplers against data whose best denoiser is known: a Gaussian, two Gaussians, a single image.

For Gaussian data the exact denoiser is linear, so a sampler is a linear map of x_1 and of the noise it draws. Each
row of a batch carries a one in a single place of these, zeros in all others; the variance of a sample is then the
sum of squares over rows, exactly, with no Monte Carlo error. All in float64 unless a test is about float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_medgen.batch import Condition
from lit_medgen.diffusion import (
    DDIM,
    Ancestral,
    Cosine,
    DPMSolverPP2M,
    FlowEuler,
    FlowHeun,
    GaussianProcess,
    Heun,
    LinearBeta,
    Sampler,
    ScaledLinearBeta,
    Schedule,
    times,
)
from lit_medgen.diffusion.samplers import LOG_SNR_FLOOR, Spacing, Walker

STD = 0.5
SPACINGS = get_args(Spacing)
SCHEDULES = {kind.__name__: kind() for kind in (LinearBeta, ScaledLinearBeta, Cosine)}

MakeSampler = Callable[[int, Spacing], Sampler]
DETERMINISTIC: dict[str, MakeSampler] = {
    "ddim": DDIM,
    "2m": DPMSolverPP2M,
    "heun": Heun,
    "flow_heun": FlowHeun,
}
STOCHASTIC: dict[str, MakeSampler] = {
    "ancestral": Ancestral,
    "ddim_half": partial(DDIM, eta=0.5),
    "2m_sde": partial(DPMSolverPP2M, eta=1.0),
}
SAMPLERS = DETERMINISTIC | STOCHASTIC

each_spacing = pytest.mark.parametrize("spacing", SPACINGS)
each_sampler = pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
each_deterministic = pytest.mark.parametrize("make", DETERMINISTIC.values(), ids=DETERMINISTIC)
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


@dataclass
class OneImage:
    """The exact denoiser of data that is always the same."""

    schedule: Schedule
    image: Tensor

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """x̂: the image."""
        return self.image.expand_as(x_t)


@dataclass
class Gaussian:
    """The exact denoiser of N(0, STD^2)."""

    schedule: Schedule = field(default_factory=ScaledLinearBeta)

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """E[x | x_t] = alpha STD^2 / (alpha^2 STD^2 + sigma^2) x_t; b 1."""
        alpha_t, sigma_t = self.schedule.alpha_sigma(t[:, None])
        return alpha_t * STD**2 / (alpha_t**2 * STD**2 + sigma_t**2) * x_t


@dataclass
class TwoGaussians:
    """The exact denoiser of 0.3 N(-0.6, 0.1^2) + 0.7 N(0.6, 0.1^2)."""

    schedule: Schedule = field(default_factory=ScaledLinearBeta)
    low: float = 0.3
    centre: float = 0.6
    std: float = 0.1

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """E[x | x_t]: each Gaussian's own, weighted by how probable it is given x_t; b 1."""
        alpha_t, sigma_t = self.schedule.alpha_sigma(t[:, None])
        variance = alpha_t**2 * self.std**2 + sigma_t**2
        odds = math.log((1 - self.low) / self.low) + 2 * alpha_t * self.centre * x_t / variance
        mean = self.centre * torch.tanh(odds / 2)  # of the two centres, given x_t
        return mean + alpha_t * self.std**2 / variance * (x_t - alpha_t * mean)


class OneAtATime:
    """Noise for propagating variance: the k-th call gives a one to row k and zeros to all others."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        """Of the shape of x: b 1."""
        self.calls += 1
        noise = torch.zeros_like(x)
        noise[self.calls] = 1
        return noise


class Replay:
    """Noise drawn beforehand, in the dtype asked for."""

    def __init__(self, noises: list[Tensor]) -> None:
        self.noises = iter(noises)

    def __call__(self, x: Tensor) -> Tensor:
        """The next one."""
        return next(self.noises).to(x.dtype)


def marginal_std(schedule: Schedule, t: float) -> float:
    """Standard deviation of x_t for Gaussian data."""
    alpha_t, sigma_t = schedule.alpha_sigma(torch.tensor(t, dtype=torch.float64))
    return math.hypot(alpha_t * STD, sigma_t)


def final_std(sampler: Sampler, schedule: Schedule, std: float = 1.0, start: float = 1.0, stop: float = 0.0) -> float:
    """Standard deviation at `stop` when it is `std` at `start`, exactly."""
    deterministic = not isinstance(sampler, DDIM) or sampler.eta == 0
    x = torch.zeros(1 if deterministic else sampler.num_steps + 1, 1, dtype=torch.float64)
    x[0] = std
    x = sampler(Gaussian(schedule), x, noise=OneAtATime(), start=start, stop=stop)
    return float(x.square().sum().sqrt())


def normal_quantiles(num: int) -> Tensor:
    """num 1: evenly spaced quantiles of N(0, 1)."""
    return torch.special.ndtri((torch.arange(num, dtype=torch.float64) + 0.5) / num)[:, None]


# Gaussian data: the right spread.


@each_sampler
@each_spacing
def test_all_steps_give_the_spread_of_the_data(make: MakeSampler, spacing: Spacing) -> None:
    """N(0, 0.5^2) in, 0.5 out, to 2 % with all T steps."""
    assert final_std(make(1000, spacing), ScaledLinearBeta()) == pytest.approx(STD, rel=0.02)


@pytest.mark.parametrize(
    ("make", "num_steps", "error"),
    [
        (DPMSolverPP2M, 10, 0.03),
        (DPMSolverPP2M, 50, 0.01),
        (STOCHASTIC["2m_sde"], 50, 0.01),
        (DDIM, 250, 0.02),
        (Ancestral, 250, 0.05),
    ],
)
def test_few_steps_give_the_spread_of_the_data(make: MakeSampler, num_steps: int, error: float) -> None:
    """What each sampler needs, evenly spaced in log-SNR."""
    assert final_std(make(num_steps, "log_snr"), ScaledLinearBeta()) == pytest.approx(STD, rel=error)


@each_schedule
def test_fifty_second_order_steps_suit_every_schedule(schedule: Schedule) -> None:
    assert final_std(DPMSolverPP2M(50), schedule) == pytest.approx(STD, rel=0.01)


@pytest.mark.parametrize(("num_steps", "error"), [(250, 0.06), (50, 0.17)])
def test_respaced_ancestral_sampling_is_only_discretised_more_coarsely(num_steps: int, error: float) -> None:
    """Steps even in t lose 4 % of the spread at 250 and 13 % at 50; betas of the wrong neighbours lose far more."""
    assert final_std(Ancestral(num_steps, "uniform"), ScaledLinearBeta()) == pytest.approx(STD, rel=error)


@pytest.mark.parametrize("spacing", ["log_snr", "uniform"])
@pytest.mark.parametrize(
    ("make", "order"),
    [
        (DDIM, 1),
        (Ancestral, 1),
        (STOCHASTIC["ddim_half"], 1),
        (DPMSolverPP2M, 2),
        (partial(DPMSolverPP2M, eta=0.5), 2),
        (STOCHASTIC["2m_sde"], 2),
        (Heun, 2),
        (FlowEuler, 1),
        (FlowHeun, 2),
    ],
    ids=["ddim", "ancestral", "ddim_half", "2m", "2m_half", "2m_sde", "heun", "flow_euler", "flow_heun"],
)
def test_order_of_convergence(make: MakeSampler, order: int, spacing: Spacing) -> None:
    """Twice the steps divide the error by 2^order, between two times where the exact spread is known."""
    schedule, start, stop = ScaledLinearBeta(), 0.9, 0.1
    coarse, fine = (
        abs(
            final_std(make(num_steps, spacing), schedule, marginal_std(schedule, start), start, stop)
            - marginal_std(schedule, stop)
        )
        for num_steps in (200, 400)
    )
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)


# Two Gaussians: the right share of each.


@each_deterministic
@each_spacing
def test_fifty_deterministic_steps_keep_the_weights_of_modes(make: MakeSampler, spacing: Spacing) -> None:
    """The quantiles of N(0, 1), walked, are 0.3 below zero and 0.7 above."""
    x = make(50, spacing)(TwoGaussians(), normal_quantiles(20_001))
    assert (x < 0).double().mean().item() == pytest.approx(0.3, abs=0.01)
    assert x[x < 0].mean().item() == pytest.approx(-0.6, abs=0.05)
    assert x[x > 0].mean().item() == pytest.approx(0.6, abs=0.05)


def share_below_zero(sampler: Sampler, denoiser: TwoGaussians) -> float:
    """Share of samples below 0, exactly: the density of x, on a grid, goes through every step (no Monte Carlo).

    A step with no noise is the mean of what it draws, one with unit noise lies a standard deviation above.
    """
    walker = Walker(denoiser, Condition())
    x = torch.linspace(-5.5, 5.5, 1_401, dtype=torch.float64)[:, None]
    edges = torch.cat([x - (x[1] - x[0]) / 2, x[-1:] + (x[1] - x[0]) / 2])
    mass = torch.special.ndtr(edges).diff(dim=0)[:, 0]
    *steps, last = times(denoiser.schedule, sampler.num_steps, sampler.spacing).unfold(0, 2, 1)
    for step in steps:
        mean = sampler.walk(walker, x, step, torch.zeros_like)
        std = sampler.walk(walker, x, step, torch.ones_like) - mean
        mass = torch.special.ndtr((edges - mean.mT) / std.mT).diff(dim=0) @ mass
    return float(mass[sampler.walk(walker, x, last, torch.zeros_like)[:, 0] < 0].sum())


@pytest.mark.parametrize(("spacing", "num_steps"), [("uniform", 50), ("trailing", 50), ("log_snr", 60), ("karras", 75)])
def test_ancestral_steps_keep_the_weights_of_modes(spacing: Spacing, num_steps: int) -> None:
    """Fifty of the spacings that the papers use with it; the two others leave 0.0112 and 0.0137 too few below zero."""
    assert share_below_zero(Ancestral(num_steps, spacing), TwoGaussians()) == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(
    ("make", "num_steps"),
    [(make, 100 if name == "ancestral" else 50) for name, make in STOCHASTIC.items()],
    ids=STOCHASTIC,
)
@each_spacing
def test_stochastic_steps_keep_the_weights_of_modes(make: MakeSampler, num_steps: int, spacing: Spacing) -> None:
    """As above, with draws: the standard error is 0.0015."""
    random = torch.Generator().manual_seed(0)
    x_1 = torch.randn(100_000, 1, generator=random)
    x = make(num_steps, spacing)(TwoGaussians(), x_1, noise=lambda x: torch.randn(x.shape, generator=random))
    assert (x < 0).double().mean().item() == pytest.approx(0.3, abs=0.01)


# A single image: every sampler is exact.


@each_schedule
@each_sampler
@each_spacing
@pytest.mark.parametrize("num_steps", [1, 3])
def test_a_denoiser_that_knows_the_image_gives_it(
    make: MakeSampler, spacing: Spacing, schedule: Schedule, num_steps: int
) -> None:
    """The last step returns x̂ itself, with no noise left or added, at any number of steps."""
    x_1, image = torch.randn(2, 2, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_close(make(num_steps, spacing)(OneImage(schedule, image), x_1), image.expand_as(x_1), rtol=1e-9, atol=1e-9)


@each_schedule
@each_deterministic
@each_spacing
@pytest.mark.parametrize("num_steps", [1, 3])
def test_deterministic_samplers_are_exact_for_one_image(
    make: MakeSampler, spacing: Spacing, schedule: Schedule, num_steps: int
) -> None:
    """x_t = alpha_t image + sigma_t eps with one eps all the way, at any number of steps."""
    image, eps = torch.randn(2, 2, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    process = GaussianProcess(schedule)
    start, stop = torch.tensor([[0.95], [0.3]], dtype=torch.float64)
    x = make(num_steps, spacing)(
        OneImage(schedule, image), process.perturb(image, start, eps), start=start.item(), stop=stop.item()
    )
    assert_close(x, process.perturb(image, stop, eps), rtol=1e-9, atol=1e-9)


# The samplers among each other.


@each_spacing
def test_ancestral_is_ddim_with_eta_one_is_a_chain_of_posteriors(spacing: Spacing) -> None:
    """The same noise gives the same sample: draws of q(x_s | x_t, x̂), written out."""
    denoiser, num_steps = Gaussian(), 20
    process = GaussianProcess(denoiser.schedule)
    x, *noises = torch.randn(num_steps + 1, 5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ancestral, ddim = (
        make(num_steps, spacing)(denoiser, x, noise=Replay(noises)) for make in (Ancestral, partial(DDIM, eta=1.0))
    )
    grid = times(denoiser.schedule, num_steps, spacing)
    for t, s, noise in zip(grid[:-1, None], grid[1:, None], noises, strict=True):
        mean, std = process.posterior(x, denoiser(x, t, Condition()), t, s)
        x = mean + std * noise
    assert_close(ancestral, x, rtol=1e-9, atol=1e-9)
    assert torch.equal(ancestral, ddim)


@pytest.mark.parametrize("eta", [0, 0.5, 1])
@each_spacing
def test_2m_is_the_exponential_integrator_of_its_paper(spacing: Spacing, eta: float) -> None:
    """Lu et al. 2022, algorithm 2 (eta 0) and its SDE form (eta 1), written out in lambda."""
    denoiser, num_steps = TwoGaussians(), 10
    x, *noises = torch.randn(num_steps + 1, 5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = DPMSolverPP2M(num_steps, spacing, eta)(denoiser, x, noise=Replay(noises))
    grid = times(denoiser.schedule, num_steps, spacing)
    half_log_snr, (alpha, sigma) = denoiser.schedule.log_snr(grid) / 2, denoiser.schedule.alpha_sigma(grid)
    steps = half_log_snr.diff()
    x_hats: list[Tensor] = []
    for i, (h, noise) in enumerate(zip(steps, noises, strict=True)):
        x_hats.append(denoiser(x, grid[i, None], Condition()))
        middle = x_hats[i]
        if 0 < i < num_steps - 1:
            middle = middle + h / steps[i - 1] / 2 * (x_hats[i] - x_hats[i - 1])
        decay = (1 - eta**2 * (1 - torch.exp(-2 * h))).sqrt()
        x = sigma[i + 1] / sigma[i] * decay * x + alpha[i + 1] * (1 - torch.exp(-h) * decay) * middle
        x = x + sigma[i + 1] * (1 - decay**2).sqrt() * noise
    assert_close(found, x, rtol=1e-9, atol=1e-9)


@each_sampler
@each_schedule
def test_a_walk_in_float32_is_the_walk_in_float64(make: MakeSampler, schedule: Schedule) -> None:
    """Coefficients are computed in float64, so only the arithmetic of images is rounded."""
    x, *noises = torch.randn(51, 5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    single, double = (
        make(50, "log_snr")(Gaussian(schedule), x.to(dtype), noise=Replay(noises))
        for dtype in (torch.float32, torch.float64)
    )
    assert single.dtype == torch.float32
    assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


class Warped(Schedule):
    """The same noise levels, met at other times: t of this schedule is t^2 of the other."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule, self.t_min = schedule, schedule.t_min**0.5

    def formula(self, t: Tensor) -> Tensor:
        """As the other's at t^2; the inverse is the generic one."""
        return self.schedule.formula(t**2)


@each_sampler
@pytest.mark.parametrize("spacing", ["log_snr", "karras"])
def test_only_noise_levels_matter_not_the_clock(make: MakeSampler, spacing: Spacing) -> None:
    """Spacings defined by the noise level give one sample whatever the parametrisation of time."""
    schedule = ScaledLinearBeta()
    x, *noises = torch.randn(21, 5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain, warped = (
        make(20, spacing)(Gaussian(clock), x, noise=Replay(noises)) for clock in (schedule, Warped(schedule))
    )
    assert_close(warped, plain, rtol=1e-8, atol=1e-8)


class Exploding(Schedule):
    """The same noise levels at the same times, but the data are not scaled down: alpha_t = 1."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule, self.t_min = schedule, schedule.t_min

    def formula(self, t: Tensor) -> Tensor:
        """As the other's."""
        return self.schedule.formula(t)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """1 and sigma / alpha of the other."""
        alpha_t, sigma_t = self.schedule.alpha_sigma(t)
        return torch.ones_like(alpha_t), sigma_t / alpha_t


@pytest.mark.parametrize("make", [make for make in SAMPLERS.values() if make is not FlowHeun])
@each_spacing
def test_only_the_ratio_of_alpha_and_sigma_matters(make: MakeSampler, spacing: Spacing) -> None:
    """x_t / alpha_t walks the same way under any scaling of the data with time, but where x_t itself is walked."""
    schedule = ScaledLinearBeta()
    x, *noises = torch.randn(21, 5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha_1 = schedule.alpha(torch.ones((), dtype=torch.float64))
    preserving = make(20, spacing)(Gaussian(schedule), x, noise=Replay(noises))
    exploding = make(20, spacing)(Gaussian(Exploding(schedule)), x / alpha_1, noise=Replay(noises))
    assert_close(exploding, preserving, rtol=1e-8, atol=1e-8)


# Times.


@each_schedule
@each_spacing
@pytest.mark.parametrize("num_steps", [1, 2, 10, 1000])
@pytest.mark.parametrize(("start", "stop"), [(1.0, 0.0), (0.9, 0.1), (0.5, 0.0)])
def test_times_fall_strictly_from_start_to_stop(
    schedule: Schedule, spacing: Spacing, num_steps: int, start: float, stop: float
) -> None:
    grid = times(schedule, num_steps, spacing, start, stop)
    assert grid.shape == (num_steps + 1,)
    assert grid.dtype == torch.float64
    if spacing in ("log_snr", "karras") and schedule.log_snr(torch.tensor(start)) < LOG_SNR_FLOOR:
        assert schedule.log_snr(grid[0]).item() == pytest.approx(LOG_SNR_FLOOR)
    else:
        assert grid[0] == start
    assert grid[-1] == stop
    assert (grid.diff() < 0).all()


@each_schedule
@pytest.mark.parametrize("spacing", ["uniform", "trailing"])
def test_all_steps_visit_the_discrete_times(schedule: Schedule, spacing: Spacing) -> None:
    expected = torch.arange(1000, -1, -1, dtype=torch.float64) / 1000
    assert_close(times(schedule, 1000, spacing), expected, rtol=0, atol=1e-12)


@each_schedule
@pytest.mark.parametrize("spacing", ["uniform", "log_snr", "karras"])
def test_the_last_step_starts_at_the_first_noise_level(schedule: Schedule, spacing: Spacing) -> None:
    """The log-SNR is infinite at 0, so t_min comes before it."""
    assert times(schedule, 10, spacing)[-2] == schedule.t_min


EVEN: dict[Spacing, Callable[[Schedule, Tensor], Tensor]] = {
    "uniform": lambda schedule, t: t,
    "trailing": lambda schedule, t: t,
    "log_snr": lambda schedule, t: schedule.log_snr(t),
    "karras": lambda schedule, t: torch.exp(-schedule.log_snr(t) / 2) ** (1 / 7),
}


@each_schedule
@pytest.mark.parametrize(("spacing", "scale"), EVEN.items(), ids=EVEN)
@pytest.mark.parametrize("stop", [0.0, 0.1])
def test_times_are_even_on_the_scale_of_the_spacing(
    schedule: Schedule, spacing: Spacing, scale: Callable[[Schedule, Tensor], Tensor], stop: float
) -> None:
    """All steps are equally long there, but for the last step to 0 (trailing: that one too)."""
    grid = times(schedule, 20, spacing, stop=stop)
    steps = scale(schedule, grid if stop > 0 or spacing == "trailing" else grid[:-1]).diff()
    assert_close(steps, steps.mean().expand_as(steps), rtol=1e-6, atol=1e-9)


# Errors.


def test_no_steps_unknown_spacings_and_impossible_noise_are_refused() -> None:
    with pytest.raises(ValueError, match="num_steps is 0; give at least 1"):
        DDIM(0)
    with pytest.raises(ValueError, match=r"spacing is 'linear'; choose from uniform, trailing, log_snr, karras"):
        Heun(10, "linear")  # type: ignore[arg-type]
    for eta in (-0.5, 1.5):
        with pytest.raises(ValueError, match=f"eta is {eta}; give 0 .* to 1"):
            DPMSolverPP2M(eta=eta)
