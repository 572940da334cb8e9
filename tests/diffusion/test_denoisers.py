"""Denoisers: what is predicted becomes x̂, and the loss is one in every parametrisation."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from lit_medgen.batch import Condition
from lit_medgen.diffusion import (
    Cosine,
    Denoiser,
    GaussianProcess,
    MinSNR,
    Parametrisation,
    ParametrisationName,
    RectifiedFlow,
    ScaledLinearBeta,
    Schedule,
    UniformWeight,
    ZeroTerminalSNR,
)

NAMES = get_args(ParametrisationName)
each_parametrisation = pytest.mark.parametrize("name", NAMES)
SCHEDULES: list[Schedule] = [
    ScaledLinearBeta(),
    Cosine(),
    RectifiedFlow(),
    RectifiedFlow(2.5),
    ZeroTerminalSNR(Cosine()),
]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)


class Says(nn.Module):
    """A network that answers the same whatever it is asked."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The answer."""
        return self.answer


def example() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, another x, x_t and t, float64; x goes beyond [-1, 1]."""
    random = torch.Generator().manual_seed(0)
    x, other, x_t = 2 * torch.randn(3, 6, 1, 4, 4, dtype=torch.float64, generator=random)
    return x, other, x_t, torch.tensor([0.001, 0.01, 0.1, 0.4, 0.8, 1.0], dtype=torch.float64)


def possible(schedule: Schedule) -> list[ParametrisationName]:
    """What may be predicted on a schedule: the noise of pure noise says nothing."""
    return [name for name in NAMES if name != "eps" or not schedule.ends_in_noise]


@pytest.mark.parametrize(
    ("schedule", "name"), [(schedule, name) for schedule in SCHEDULES for name in possible(schedule)]
)
def test_a_perfect_prediction_gives_the_data(schedule: Schedule, name: ParametrisationName) -> None:
    """to_x inverts target, and calling the denoiser is to_x of the network; at t = 1 too."""
    x, _, x_t, t = example()
    target = Denoiser(nn.Identity(), schedule, name).target(x, x_t, t)
    denoiser = Denoiser(Says(target), schedule, name)
    assert_close(denoiser.parametrisation.to_x(target, x_t, t, denoiser.process), x, rtol=1e-10, atol=1e-10)
    assert_close(denoiser(x_t, t, Condition()), x, rtol=1e-10, atol=1e-10)


@each_schedule
@each_parametrisation
@pytest.mark.parametrize("other", NAMES)
def test_round_trips_between_parametrisations(
    name: ParametrisationName, other: ParametrisationName, schedule: Schedule
) -> None:
    """A prediction of one kind, written as another and back, is the same."""
    prediction, _, x_t, t = example()
    if schedule.ends_in_noise:
        t = t.clamp(max=0.99)
    process = GaussianProcess(schedule)
    here, there = Parametrisation.named(name), Parametrisation.named(other)
    as_other = there.target(here.to_x(prediction, x_t, t, process), x_t, t, process)
    back = here.target(there.to_x(as_other, x_t, t, process), x_t, t, process)
    assert_close(back, prediction, rtol=1e-7, atol=1e-7)


@each_parametrisation
def test_a_half_precision_network_does_not_coarsen_the_estimate(name: ParametrisationName) -> None:
    """x̂ has the dtype of x_t, float32, when the network answers in bfloat16."""
    _, _, x_t, t = example()
    denoiser = Denoiser(Says(torch.ones_like(x_t, dtype=torch.bfloat16)), ScaledLinearBeta(), name)
    exact = Denoiser(Says(torch.ones_like(x_t)), ScaledLinearBeta(), name)
    x_hat = denoiser(x_t.float(), t.float(), Condition())
    assert x_hat.dtype == torch.float32
    assert_close(x_hat.double(), exact(x_t, t, Condition()), rtol=1e-4, atol=1e-4)
    assert denoiser.weighted_error(x_t.float(), t.float(), x_t.float(), Condition()).dtype == torch.float32


@each_schedule
@given(gamma=st.floats(0.1, 20))
@settings(deadline=None, max_examples=20)
def test_min_snr_is_one_loss_in_all_parametrisations(schedule: Schedule, gamma: float) -> None:
    """weighted_error is min(SNR, gamma) |x̂ - x|^2, whatever is predicted."""
    x, x_hat, eps, t = example()
    expected = schedule.log_snr(t).exp().clamp(max=gamma)[:, None, None, None] * (x_hat - x).square()
    for name in possible(schedule):
        x_t = GaussianProcess(schedule).perturb(x, t, eps)
        prediction = Denoiser(nn.Identity(), schedule, name).target(x_hat, x_t, t)
        denoiser = Denoiser(Says(prediction), schedule, name, MinSNR(gamma))
        assert_close(denoiser.weighted_error(x, t, eps, Condition()), expected, rtol=1e-8, atol=1e-20)


@each_parametrisation
def test_the_error_is_that_of_the_prediction(name: ParametrisationName) -> None:
    """With uniform weights, the default, as the papers write it: |eps - eps_theta(x_t, t)|^2 and its like."""
    x, prediction, eps, t = example()
    schedule = Cosine()
    alpha_t, sigma_t = (value[:, None, None, None] for value in schedule.alpha_sigma(t))
    rates = schedule.derivatives(t)
    velocity = rates.alpha[:, None, None, None] * x + rates.sigma[:, None, None, None] * eps
    target = {"x": x, "eps": eps, "v": alpha_t * eps - sigma_t * x, "velocity": velocity}[name]
    for weight in (None, UniformWeight()):
        error = Denoiser(Says(prediction), schedule, name, weight).weighted_error(x, t, eps, Condition())
        assert_close(error, (prediction - target).square(), rtol=1e-8, atol=1e-8)


class Asks(nn.Module):
    """A network that keeps what it is called with, and answers its input."""

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """x."""
        self.asked = x, t, condition
        return x


def test_the_network_sees_the_noisy_image_its_time_and_its_condition() -> None:
    x, _, eps, t = example()
    network, condition = Asks(), Condition(attributes={"age_years": t})
    Denoiser(network, ScaledLinearBeta()).weighted_error(x, t, eps, condition)
    x_t, time, seen = network.asked
    assert torch.equal(x_t, GaussianProcess(ScaledLinearBeta()).perturb(x, t, eps))
    assert time is t
    assert seen is condition


def test_an_unknown_parametrisation_is_refused() -> None:
    with pytest.raises(ValueError, match="parametrisation is 'noise'; choose from x, eps, v, velocity"):
        Denoiser(nn.Identity(), ScaledLinearBeta(), "noise")  # type: ignore[arg-type]


@each_schedule
def test_noise_as_prediction_is_refused_where_x_1_is_nothing_else(schedule: Schedule) -> None:
    """With any weight, min-SNR's among them, whose value for noise would be 0 / 0."""
    for weight in (None, MinSNR()):
        if schedule.ends_in_noise:
            with pytest.raises(ValueError, match=f"'eps', but schedule {type(schedule).__name__} ends in pure noise"):
                Denoiser(nn.Identity(), schedule, "eps", weight)
        else:
            Denoiser(nn.Identity(), schedule, "eps", weight)
