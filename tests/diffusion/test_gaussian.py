"""The Gaussian process: data, noise, v and score are one knowledge, and its steps compose to its marginals.

q is linear in its arguments, so each coefficient is read off exactly by feeding a one for one argument and zeros
for the others; nothing here is sampled.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from lit_medgen.diffusion import (
    Cosine,
    Eps,
    GaussianProcess,
    LinearBeta,
    RectifiedFlow,
    ScaledLinearBeta,
    Schedule,
    V,
    Velocity,
    X,
    ZeroTerminalSNR,
)
from lit_medgen.diffusion.schedules import DiscreteSchedule

ONE, ZERO = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
T = 1000

PRESERVING: list[Schedule] = [LinearBeta(), ScaledLinearBeta(), Cosine()]
PURE_NOISE: list[Schedule] = [RectifiedFlow(3.0), ZeroTerminalSNR(ScaledLinearBeta())]
each_process = pytest.mark.parametrize(
    "process",
    [GaussianProcess(schedule) for schedule in PRESERVING + PURE_NOISE],
    ids=lambda p: type(p.schedule).__name__,
)
each_of_the_papers = pytest.mark.parametrize("process", [GaussianProcess(schedule) for schedule in PRESERVING])
assert_exact = partial(assert_close, rtol=1e-10, atol=1e-10)

value = st.floats(-3, 3)
pairs = st.tuples(st.integers(0, T * 4 - 1), st.integers(1, T * 4)).filter(lambda pair: pair[0] < pair[1])
"""Times s < t in quarters of a level, as integers: both on the discrete times and between them."""


def scalars(*values: float) -> list[Tensor]:
    """Each number as a batch of one, float64."""
    return [torch.tensor([value], dtype=torch.float64) for value in values]


def transition_moments(process: GaussianProcess, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficient of x_s in the mean of q(x_t | x_s), and its variance."""
    return process.transition(ONE, s, t, ZERO), process.transition(ZERO, s, t, ONE) ** 2


def posterior_moments(process: GaussianProcess, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients of x_t and of x in the mean of q(x_s | x_t, x), and its variance."""
    from_x_t, std = process.posterior(ONE, ZERO, t, s)
    from_x, _ = process.posterior(ZERO, ONE, t, s)
    return from_x_t, from_x, std**2


@each_process
@given(x=value, eps=value, t=st.floats(1 / T, 1))
@settings(deadline=None)
def test_all_parametrisations_and_the_score_are_one_knowledge(
    process: GaussianProcess, x: float, eps: float, t: float
) -> None:
    """x_t made from x and eps gives back eps, v = alpha eps - sigma x, the velocity and score = -eps / sigma.

    Each gives back x, but for noise and score where x_t holds nothing of the data.
    """
    data, noise, time = scalars(x, eps, t)
    alpha_t, sigma_t = process.schedule.alpha_sigma(time)
    x_t = process.perturb(data, time, noise)
    v, score = alpha_t * noise - sigma_t * data, -noise / sigma_t
    assert_exact(x_t, alpha_t * data + sigma_t * noise)
    rates = process.schedule.derivatives(time)
    velocity = rates.alpha * data + rates.sigma * noise
    for kind, truth in ((X(), data), (Eps(), noise), (V(), v), (Velocity(), velocity)):
        assert_exact(kind.target(data, x_t, time, process), truth)
        if not isinstance(kind, Eps) or alpha_t > 1e-3:
            assert_exact(kind.to_x(truth, x_t, time, process), data)
    assert_exact(process.score_from_x(data, x_t, time), score)
    if alpha_t > 1e-3:
        assert_exact(process.x_from_score(score, x_t, time), data)


@each_process
def test_score_is_the_gradient_of_the_log_density(process: GaussianProcess) -> None:
    """grad log N(x_t; alpha_t x, sigma_t^2), by automatic differentiation."""
    t = torch.linspace(0.05, 1, 20, dtype=torch.float64)
    x, x_t = torch.linspace(-1, 1, 20, dtype=torch.float64), torch.linspace(2, -2, 20, dtype=torch.float64)
    alpha_t, sigma_t = process.schedule.alpha_sigma(t)
    x_t.requires_grad_()
    density = torch.distributions.Normal(alpha_t * x, sigma_t).log_prob(x_t).sum()
    (score,) = torch.autograd.grad(density, x_t)
    assert_close(process.score_from_x(x, x_t.detach(), t), score, rtol=1e-9, atol=1e-9)


@each_process
@given(pair=pairs)
@settings(deadline=None)
def test_a_transition_after_the_marginal_is_the_marginal(process: GaussianProcess, pair: tuple[int, int]) -> None:
    """Chapman-Kolmogorov: q(x_t | x) is the integral of q(x_t | x_s) q(x_s | x)."""
    s, t = scalars(*(i / (4 * T) for i in pair))
    alpha_s, sigma_s = process.schedule.alpha_sigma(s)
    alpha_t, sigma_t = process.schedule.alpha_sigma(t)
    mean, variance = transition_moments(process, s, t)
    assert_exact(mean * alpha_s, alpha_t)
    assert_exact(mean**2 * sigma_s**2 + variance, sigma_t**2)


@each_process
@given(pair=pairs)
@settings(deadline=None)
def test_posterior_reproduces_the_marginal(process: GaussianProcess, pair: tuple[int, int]) -> None:
    """q(x_s | x) is the mean of q(x_s | x_t, x) over q(x_t | x)."""
    s, t = scalars(*(i / (4 * T) for i in pair))
    alpha_s, sigma_s = process.schedule.alpha_sigma(s)
    alpha_t, sigma_t = process.schedule.alpha_sigma(t)
    from_x_t, from_x, variance = posterior_moments(process, t, s)
    assert_exact(from_x_t * alpha_t + from_x, alpha_s)
    assert_exact(from_x_t**2 * sigma_t**2 + variance, sigma_s**2)


@each_process
@given(pair=pairs.filter(lambda pair: pair[0] > 0))
@settings(deadline=None)
def test_posterior_follows_bayes_rule(process: GaussianProcess, pair: tuple[int, int]) -> None:
    """Precisions add: q(x_s | x_t, x) is proportional to q(x_t | x_s) q(x_s | x), for any s < t."""
    s, t = scalars(*(i / (4 * T) for i in pair))
    alpha_s, sigma_s = process.schedule.alpha_sigma(s)
    step, fresh = transition_moments(process, s, t)
    from_x_t, from_x, variance = posterior_moments(process, t, s)
    expected = 1 / (1 / sigma_s**2 + step**2 / fresh)
    assert_close(variance, expected, rtol=1e-7, atol=0)
    assert_close(from_x_t, expected * step / fresh, rtol=1e-7, atol=1e-10)  # near s = 0 digits cancel
    assert_close(from_x, expected * alpha_s / sigma_s**2, rtol=1e-7, atol=1e-10)


@each_of_the_papers
def test_neighbouring_levels_are_those_of_ddpm(process: GaussianProcess) -> None:
    """Ho et al. 2020: eq. 2 for q(x_t | x_{t-1}) and eq. 7 for q(x_{t-1} | x_t, x), from the betas, at all T levels."""
    assert isinstance(process.schedule, DiscreteSchedule)
    beta = process.schedule.betas().numpy()
    alpha_bar = np.cumprod(1 - beta)
    alpha_bar_before = np.concatenate([[1.0], alpha_bar[:-1]])
    t = torch.arange(1, T + 1, dtype=torch.float64) / T
    s = torch.arange(T, dtype=torch.float64) / T
    one, zero = torch.ones(T, dtype=torch.float64), torch.zeros(T, dtype=torch.float64)

    np.testing.assert_allclose(process.transition(one, s, t, zero), np.sqrt(1 - beta), rtol=1e-10)
    np.testing.assert_allclose(process.transition(zero, s, t, one) ** 2, beta, rtol=1e-9)

    from_x_t, std = process.posterior(one, zero, t, s)
    from_x, _ = process.posterior(zero, one, t, s)
    mean_x_t = np.sqrt(1 - beta) * (1 - alpha_bar_before) / (1 - alpha_bar)
    mean_x = np.sqrt(alpha_bar_before) * beta / (1 - alpha_bar)
    np.testing.assert_allclose(from_x_t, mean_x_t, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(from_x, mean_x, rtol=1e-9)
    np.testing.assert_allclose(std**2, (1 - alpha_bar_before) / (1 - alpha_bar) * beta, rtol=1e-9)


def test_a_time_for_each_image_multiplies_all_of_it() -> None:
    """x: b c *s with t: b is the same as each image on its own, and keeps the dtype of the images."""
    process = GaussianProcess(ScaledLinearBeta())
    x, eps = torch.rand(2, 3, 1, 4, 5, 6)
    t, s = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0.1, 0.3, 0.2])
    together = process.perturb(x, t, eps), *process.posterior(x, eps, t, s)
    for i in range(3):
        row = slice(i, i + 1)
        alone = process.perturb(x[row], t[row], eps[row]), *process.posterior(x[row], eps[row], t[row], s[row])
        for whole, part in zip(together, alone, strict=True):
            assert whole.dtype == torch.float32
            assert_close(whole[row], part, rtol=0, atol=0)
