"""Guidance by likelihoods is Bayes' theorem: for a linear observation of Gaussian data all of it is known exactly."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from lit_medgen.batch import Condition
from lit_medgen.diffusion import (
    DDIM,
    Ancestral,
    Clipped,
    Denoiser,
    DPMSolverPP2M,
    FlowEuler,
    FlowHeun,
    LikelihoodGuidance,
    LinearBeta,
    ParametrisationName,
    RectifiedFlow,
    Sampler,
    ScaledLinearBeta,
    Schedule,
    Term,
)

MEAN, STD = torch.tensor([0.3, -0.5]), 0.6
"""Data: two values, independent, x ~ N(MEAN, STD^2 I)."""
DIRECTION, NOISE, SEEN = torch.tensor([1.0, -2.0]), 0.3, 0.8
"""What is seen of them: y = DIRECTION . x + n, n ~ N(0, NOISE^2), and y = SEEN."""
NOBODY = Condition()


def posterior() -> tuple[Tensor, Tensor]:
    """Mean and covariance of x given y."""
    gain = STD**2 * DIRECTION / (STD**2 * DIRECTION @ DIRECTION + NOISE**2)
    mean = MEAN + gain * (SEEN - DIRECTION @ MEAN)
    return mean, STD**2 * (torch.eye(2) - torch.outer(gain, DIRECTION))


class Exact(torch.nn.Module):
    """A network whose prediction is the best there is, in a parametrisation."""

    def __init__(self, schedule: Schedule, name: ParametrisationName) -> None:
        super().__init__()
        self.schedule, self.name = schedule, name

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        x_hat = x_hat_of(self.schedule, x_t, t)
        return Denoiser(torch.nn.Identity(), self.schedule, self.name).target(x_hat, x_t, t)


def x_hat_of(schedule: Schedule, x_t: Tensor, t: Tensor) -> Tensor:
    """E[x | x_t]."""
    alpha, sigma = (value.to(x_t)[:, None] for value in schedule.alpha_sigma(t))
    return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x_t - alpha * MEAN)


class Observation(NamedTuple):
    """Its exact log p_t(y | x_t): y given x_t is Gaussian about DIRECTION . E[x | x_t]."""

    schedule: Schedule
    seen: float = SEEN

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (value.to(x_t) for value in self.schedule.alpha_sigma(t))
        left = STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2)  # variance of x given x_t
        variance = left * (DIRECTION @ DIRECTION) + NOISE**2
        return -0.5 * (self.seen - x_hat_of(self.schedule, x_t, t) @ DIRECTION) ** 2 / variance


CASES: list[tuple[Sampler, Schedule, ParametrisationName]] = [
    (DDIM(200), ScaledLinearBeta(), "eps"),
    (Ancestral(400, spacing="log_snr"), ScaledLinearBeta(), "v"),
    (DPMSolverPP2M(40), LinearBeta(), "x"),
    (FlowHeun(40, spacing="log_snr"), ScaledLinearBeta(), "velocity"),
]


@pytest.mark.parametrize(("sampler", "schedule", "name"), CASES)
def test_samples_are_those_of_the_posterior(sampler: Sampler, schedule: Schedule, name: ParametrisationName) -> None:
    """Mean and covariance of x given y, whatever is predicted and however it is walked."""
    guided = LikelihoodGuidance(Denoiser(Exact(schedule, name), schedule, name), [[Term(Observation(schedule))]])
    torch.manual_seed(0)
    x = sampler(guided, torch.randn(4000, 2))
    mean, covariance = posterior()
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0, atol=0.03)


def make(groups: list[list[Term]]) -> LikelihoodGuidance:
    """Guidance of the exact denoiser."""
    schedule = ScaledLinearBeta()
    return LikelihoodGuidance(Denoiser(Exact(schedule, "eps"), schedule, "eps"), groups)


def some(num: int = 5) -> tuple[Tensor, Tensor]:
    """x_t, b 2, at times b."""
    torch.manual_seed(1)
    return torch.randn(num, 2), torch.linspace(0.2, 0.9, num)


def test_x_hat_is_bayes() -> None:
    """E[x | x_t, y] in closed form, at every time."""
    schedule = ScaledLinearBeta()
    x_t, t = some()
    alpha, sigma = (value.to(x_t)[:, None] for value in schedule.alpha_sigma(t))
    left = STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2)
    x_hat = x_hat_of(schedule, x_t, t)
    surprise = (SEEN - x_hat @ DIRECTION)[:, None]
    expected = x_hat + left * DIRECTION * surprise / (left * (DIRECTION @ DIRECTION) + NOISE**2)
    found = make([[Term(Observation(schedule))]])(x_t, t, NOBODY)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def refuses(x_t: Tensor, t: Tensor) -> Tensor:
    """A likelihood that must not be asked."""
    raise AssertionError("evaluated")


def test_scale_0_is_the_unguided_model_and_asks_nobody() -> None:
    """Bit-equal, with no term evaluated; so are terms outside of their interval, where the CPU knows the time."""
    x_t, t = some()
    guided = make([[Term(refuses, 0.0)], []])
    assert guided(x_t, t, NOBODY).equal(guided.denoiser(x_t, t, NOBODY))
    late = make([[Term(refuses, interval=(0.5, 1.0))]])
    assert late.at(0.5) is late.denoiser
    assert late.at(0.500001) is not late.denoiser
    assert make([]).at(0.3) is not None


def test_interval_acts_image_by_image() -> None:
    """In (low, high], as `at` has it."""
    x_t, t = some()
    observation = Observation(ScaledLinearBeta())
    guided, always = make([[Term(observation, 2.0, (0.3, 0.7))]]), make([[Term(observation, 2.0)]])
    inside = (t > 0.3) & (t <= 0.7)
    assert 0 < inside.sum() < len(t)
    expected = torch.where(inside[:, None], always(x_t, t, NOBODY), guided.denoiser(x_t, t, NOBODY))
    torch.testing.assert_close(guided(x_t, t, NOBODY), expected)
    for i in range(len(t)):
        alone = guided.at(float(t[i]))(x_t[i : i + 1], t[i : i + 1], NOBODY)
        torch.testing.assert_close(alone, expected[i : i + 1])


def test_a_group_is_a_sum_and_groups_follow_each_other() -> None:
    """The second group's gradient is taken at x_t + alpha_t (x̂' - x̂), by the formula written out."""
    schedule = ScaledLinearBeta()
    x_t, t = some()
    one, other = Observation(schedule), Observation(schedule, seen=-1.0)
    alpha, sigma = (value.to(x_t)[:, None] for value in schedule.alpha_sigma(t))

    def gradient(log_likelihood: Observation, at: Tensor) -> Tensor:
        at = at.clone().requires_grad_()
        (found,) = torch.autograd.grad(log_likelihood(at, t).sum(), at)
        return found

    x_hat = x_hat_of(schedule, x_t, t)
    shifted = x_hat + 2 * sigma**2 / alpha * gradient(one, x_t)
    together = shifted + 3 * sigma**2 / alpha * gradient(other, x_t)
    in_turn = shifted + 3 * sigma**2 / alpha * gradient(other, x_t + alpha * (shifted - x_hat))
    first, second = Term(one, 2.0), Term(other, 3.0)
    torch.testing.assert_close(make([[first, second]])(x_t, t, NOBODY), together, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(make([[first], [second]])(x_t, t, NOBODY), in_turn, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together, in_turn, atol=1e-2)


def test_an_image_does_not_depend_on_the_others() -> None:
    """Likelihoods are summed over the batch, not averaged."""
    x_t, t = some(7)
    guided = make([[Term(Observation(ScaledLinearBeta()), 4.0)]])
    alone = torch.cat([guided(x_t[i : i + 1], t[i : i + 1], NOBODY) for i in range(7)])
    torch.testing.assert_close(guided(x_t, t, NOBODY), alone, rtol=1e-5, atol=1e-5)


def test_a_mask_of_zero_changes_nothing() -> None:
    """x m + x (1 - m), the second without its gradient: where m is 0 nothing moves, elsewhere as without a mask."""
    schedule, mask = ScaledLinearBeta(), torch.tensor([1.0, 0.0])
    observation = Observation(schedule)
    x_t, t = some()

    def masked(x: Tensor, t: Tensor) -> Tensor:
        return observation(x * mask + x.detach() * (1 - mask), t)

    guided, free = make([[Term(masked)]]), make([[Term(observation)]])
    x_hat = guided(x_t, t, NOBODY)
    assert x_hat[:, 1].equal(guided.denoiser(x_t, t, NOBODY)[:, 1])
    torch.testing.assert_close(x_hat[:, 0], free(x_t, t, NOBODY)[:, 0])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(mode: type[torch.no_grad]) -> None:
    """As in sampling; parameters of whatever gives the likelihood keep no gradient."""
    x_t, t = some()
    layer = torch.nn.Linear(2, 1)

    def log_likelihood(x: Tensor, t: Tensor) -> Tensor:
        return layer(x)[:, 0]

    guided = make([[Term(log_likelihood)]])
    expected = guided(x_t, t, NOBODY)
    with mode():
        found = guided(x_t.clone(), t.clone(), NOBODY)
    torch.testing.assert_close(found, expected.detach())
    assert not found.requires_grad
    assert layer.weight.grad is None


def test_clipping_is_the_outermost() -> None:
    """However strong the guidance, x̂ stays in the range of images."""
    x_t, t = some()
    guided = Clipped(make([[Term(Observation(ScaledLinearBeta(), seen=50.0), 30.0)]]))
    x_hat = guided(x_t, t, NOBODY)
    assert x_hat.abs().max() == 1
    assert guided.at(0.5)(x_t, t, NOBODY).abs().max() == 1


@pytest.mark.parametrize("sampler", [FlowEuler(100), FlowHeun(50), DPMSolverPP2M(50, "trailing")])
def test_walks_a_schedule_that_ends_in_noise(sampler: Sampler) -> None:
    """Pure noise, where alpha(1) = 0, is not guided; the posterior is that of the steps that follow."""
    schedule = RectifiedFlow()
    denoiser = Denoiser(Exact(schedule, "velocity"), schedule, "velocity")
    guided = LikelihoodGuidance(denoiser, [[Term(Observation(schedule))], [Term(Observation(schedule, -1.0), 0.0)]])
    torch.manual_seed(0)
    x = sampler(guided, torch.randn(4000, 2))
    mean, covariance = posterior()
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0, atol=0.05)
    noise, t = some()[0], torch.ones(5)
    assert guided(noise, t, NOBODY).equal(denoiser(noise, t, NOBODY))
    assert guided.at(1.0) is denoiser


def test_refuses_an_interval_that_is_none() -> None:
    """One line that says what to give."""
    with pytest.raises(ValueError, match="interval is"):
        Term(refuses, interval=(0.7, 0.2))
