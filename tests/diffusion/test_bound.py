"""The variational bound: equal to the exact likelihood where the model is exact, whatever the schedule in between.

Data are x ~ N(0, c^2), of which all is known: x̂ is a multiple of z_t, and E|eps - epŝ|^2 of a value is
c^2 SNR / (c^2 SNR + 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lit_medgen.diffusion import (
    GammaSchedule,
    Gaussian,
    LinearGamma,
    MonotoneGamma,
    NoiseAt,
    bits_per_dimension,
    diffusion_term,
    latent_at_start,
    prior_term,
)
from lit_medgen.diffusion.bound import Predict

C = 0.4
NUM = 4096


def bent(gamma_min: float = -8.0, gamma_max: float = 4.0) -> MonotoneGamma:
    """A learned schedule far from a line."""
    torch.manual_seed(5)
    schedule = MonotoneGamma(gamma_min, gamma_max, num_features=16)
    with torch.no_grad():
        for parameter in (schedule.height, schedule.middle, schedule.steepness, schedule.line):
            parameter.add_(torch.randn_like(parameter))
    return schedule


def exact(schedule: GammaSchedule, c: float = C) -> Predict:
    """The best epŝ for x ~ N(0, c^2), which is told the noise level alone."""

    def predict(z_t: Tensor, level: Tensor) -> Tensor:
        gamma = (schedule.gamma_min + schedule.span * level).view(-1, *[1] * (z_t.ndim - 1))
        alpha_squared, sigma_squared = torch.sigmoid(-gamma), torch.sigmoid(gamma)
        return (sigma_squared.sqrt() / (alpha_squared * c**2 + sigma_squared) * z_t).to(z_t.dtype)

    return predict


def even_times(num: int) -> Tensor:
    """num, float64: the middles of equal parts of [0, 1]."""
    return (torch.arange(num, dtype=torch.float64) + 0.5) / num


def expected(schedule: GammaSchedule, num_steps: int | None) -> float:
    """The diffusion term of one value, by its formula: SNR c^2 / (SNR c^2 + 1) is the mean squared error of epŝ."""
    t = even_times(20_000)
    noise = NoiseAt.of(schedule, t, num_steps)
    snr = torch.exp(-noise.gamma)
    return float((noise.rate * snr * C**2 / (snr * C**2 + 1) / 2).mean())


def in_closed_form(gamma_min: float, gamma_max: float) -> float:
    """The integral over gamma of the same: log((1 + c^2 SNR_0) / (1 + c^2 SNR_1)) / 2."""
    return (math.log1p(C**2 * math.exp(-gamma_min)) - math.log1p(C**2 * math.exp(-gamma_max))) / 2


@pytest.mark.parametrize("make", [lambda: LinearGamma(-8, 4), bent])
def test_bound_of_gaussian_data_is_their_likelihood(make: Callable[[], GammaSchedule]) -> None:
    """E[bound] = E[-log p(x)] + KL(q(z_1) || N(0, I)), with the exact reverse process and the exact p(x | z_0)."""
    schedule = make()
    torch.manual_seed(0)
    x = C * torch.randn(64 * NUM, 1, 8, dtype=torch.float64)
    with torch.no_grad():
        diffusion = diffusion_term(exact(schedule), schedule, x, even_times(len(x)), torch.randn_like(x))
        prior = prior_term(schedule, x)
        location, noise = latent_at_start(schedule, x, torch.randn_like(x))
        shrunk = C**2 / (C**2 + noise**2)  # the posterior of x given z_0
        gaussian = Gaussian(num_values=None, scale=float(noise * shrunk.sqrt()))
        bound = diffusion + prior - gaussian(x, location * shrunk, noise)
        variance = torch.sigmoid(-schedule.gamma_min - schedule.span) * (C**2 - 1) + 1
    entropy = 8 * (math.log(2 * math.pi * C**2) + 1) / 2
    kl = float(8 * (variance - 1 - variance.log()) / 2)
    groups = bound.view(-1, 64).mean(0)  # each with its times spread over all of [0, 1]
    error = float(groups.std() / 8)
    assert error < 0.05
    assert float(bound.mean()) == pytest.approx(entropy + kl, abs=4 * error)


@pytest.mark.parametrize("make", [lambda: LinearGamma(-8, 4), bent])
def test_diffusion_term_depends_on_the_ends_alone(make: Callable[[], GammaSchedule]) -> None:
    """In continuous time, whatever lies between (Kingma et al. 2021, eq. 18)."""
    with torch.no_grad():
        assert expected(make(), None) == pytest.approx(in_closed_form(-8, 4), rel=2e-3)


@pytest.mark.parametrize("make", [lambda: LinearGamma(-8, 4), bent])
def test_discrete_bound_falls_to_the_continuous_one(make: Callable[[], GammaSchedule]) -> None:
    """The more steps the tighter (their section 4.2); at T = 20,000 nothing is left."""
    schedule = make()
    with torch.no_grad():
        terms = [expected(schedule, num_steps) for num_steps in (5, 10, 20, 100, 1000, 20_000)]
    assert all(later < earlier for earlier, later in pairwise(terms))
    assert terms[-1] == pytest.approx(in_closed_form(-8, 4), rel=2e-3)


def test_estimate_is_that_of_the_formula() -> None:
    """The mean over noise of `diffusion_term`, with steps and without."""
    schedule = LinearGamma(-8, 4)
    torch.manual_seed(1)
    x = C * torch.randn(2000, 1, 32, dtype=torch.float64)
    for num_steps in (None, 5, 100):
        losses = diffusion_term(exact(schedule), schedule, x, even_times(2000), torch.randn_like(x), num_steps)
        assert float(losses.mean()) / 32 == pytest.approx(expected(schedule, num_steps), rel=0.02)


def test_prior_term_is_the_divergence() -> None:
    """Of N(alpha_1 z, sigma_1^2 I) from N(0, I), as PyTorch has it; nothing cancels where alpha is small."""
    z = torch.randn(3, 2, 4, dtype=torch.float64)
    for gamma_max in (1.0, 5.0, 12.0):
        alpha, sigma = math.sqrt(1 / (1 + math.exp(gamma_max))), math.sqrt(1 / (1 + math.exp(-gamma_max)))
        q = torch.distributions.Normal(alpha * z, sigma)
        kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(torch.zeros_like(z), 1.0))
        found = prior_term(LinearGamma(-5, gamma_max), z)
        torch.testing.assert_close(found, kl.flatten(1).sum(1), rtol=1e-5, atol=1e-9)
    assert prior_term(LinearGamma(-5, 40.0), z).min() > 0


def test_bits() -> None:
    """Of 256 equally likely values: 8."""
    assert float(bits_per_dimension(torch.tensor(100 * math.log(256)), 100)) == pytest.approx(8)


def gradients(schedule: MonotoneGamma, x: Tensor, t: Tensor, eps: Tensor) -> dict[str, Tensor]:
    """Name -> gradient of the mean bound, as training takes it."""
    schedule.zero_grad()
    diffusion_term(exact(schedule), schedule, x, t, eps).mean().backward()
    return {name: each.grad.clone() for name, each in schedule.named_parameters() if each.grad is not None}


def test_interior_is_trained_by_variance_and_ends_by_the_bound() -> None:
    """The gradients are those of E[L^2] / E[L] and of E[L], each taken by itself."""
    schedule = bent()
    torch.manual_seed(2)
    x, t = C * torch.randn(64, 1, 4), torch.rand(64)
    eps = torch.randn_like(x)
    found = gradients(schedule, x, t, eps)

    def losses() -> Tensor:
        noise = NoiseAt.of(schedule, t)
        error = (exact(schedule)(noise.perturb(x, eps), noise.level) - eps).square().flatten(1).sum(1)
        return noise.rate * error / 2

    by_variance = torch.autograd.grad(losses().square().mean(), [schedule.height, schedule.middle])
    mean = losses().mean().detach()
    for name, expected_gradient in zip(("height", "middle"), by_variance, strict=True):
        torch.testing.assert_close(found[name], expected_gradient / mean, rtol=1e-4, atol=1e-6)
    (ends,) = torch.autograd.grad(losses().mean(), [schedule.ends])
    torch.testing.assert_close(found["ends"], ends, rtol=1e-4, atol=1e-6)


def test_training_by_variance_lowers_it_and_leaves_the_mean() -> None:
    """A bad schedule learns one with a quieter estimate of the same bound."""
    schedule = bent()
    schedule.ends.requires_grad_(False)
    torch.manual_seed(3)

    def moments() -> tuple[float, float]:
        x = C * torch.randn(NUM, 1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        eps = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            losses = diffusion_term(exact(schedule), schedule, x, even_times(NUM), eps)
        return float(losses.mean()), float(losses.std())

    mean, std = moments()
    optimizer = torch.optim.Adam([each for each in schedule.parameters() if each.requires_grad], lr=0.05)
    for _ in range(150):
        x = C * torch.randn(256, 1, 16)
        optimizer.zero_grad()
        diffusion_term(exact(schedule), schedule, x, torch.rand(256), torch.randn_like(x)).mean().backward()
        optimizer.step()
    later_mean, later_std = moments()
    assert later_std < 0.6 * std
    assert later_mean == pytest.approx(mean, rel=0.02)
