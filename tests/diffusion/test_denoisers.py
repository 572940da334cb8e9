"""Denoisers: what is predicted becomes x̂, weights mean the same in every parametrisation, times are spread evenly."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from lit_medgen.batch import Condition
from lit_medgen.diffusion import Denoiser, MinSNR, ScaledLinearBeta, UniformWeight, stratified_times
from lit_medgen.diffusion.denoisers import Parametrisation

each_parametrisation = pytest.mark.parametrize("parametrisation", get_args(Parametrisation))


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


@each_parametrisation
def test_a_perfect_prediction_gives_the_data(parametrisation: Parametrisation) -> None:
    """to_x inverts target, and calling the denoiser is to_x of the network."""
    x, _, x_t, t = example()
    schedule = ScaledLinearBeta()
    target = Denoiser(nn.Identity(), schedule, parametrisation).target(x, x_t, t)
    denoiser = Denoiser(Says(target), schedule, parametrisation)
    assert_close(denoiser.to_x(target, x_t, t), x, rtol=1e-10, atol=1e-10)
    assert_close(denoiser(x_t, t, Condition()), x, rtol=1e-10, atol=1e-10)


@each_parametrisation
def test_clip_keeps_the_estimate_within_the_range_of_images(parametrisation: Parametrisation) -> None:
    """Clipped, x̂ is clamped to [-1, 1]; else it is left alone."""
    x, _, x_t, t = example()
    target = Denoiser(nn.Identity(), ScaledLinearBeta(), parametrisation).target(x, x_t, t)
    clipped = Denoiser(Says(target), ScaledLinearBeta(), parametrisation, clip=True)
    assert x.abs().max() > 1
    assert_close(clipped(x_t, t, Condition()), x.clamp(-1, 1), rtol=1e-10, atol=1e-10)


@each_parametrisation
def test_a_half_precision_network_does_not_coarsen_the_estimate(parametrisation: Parametrisation) -> None:
    """x̂ has the dtype of x_t, float32, when the network answers in bfloat16."""
    _, _, x_t, t = example()
    denoiser = Denoiser(Says(torch.ones_like(x_t, dtype=torch.bfloat16)), ScaledLinearBeta(), parametrisation)
    exact = Denoiser(Says(torch.ones_like(x_t)), ScaledLinearBeta(), parametrisation)
    x_hat = denoiser(x_t.float(), t.float(), Condition())
    assert x_hat.dtype == torch.float32
    assert_close(x_hat.double(), exact(x_t, t, Condition()), rtol=1e-4, atol=1e-4)


@given(gamma=st.floats(0.1, 20))
@settings(deadline=None)
def test_min_snr_is_one_loss_in_all_parametrisations(gamma: float) -> None:
    """weight |prediction - target|^2 = min(SNR, gamma) |x̂ - x|^2, whatever is predicted."""
    x, x_hat, x_t, t = example()
    schedule = ScaledLinearBeta()
    log_snr = schedule.log_snr(t)
    expected = log_snr.exp().clamp(max=gamma) * (x_hat - x).square().flatten(1).sum(1)
    for parametrisation in get_args(Parametrisation):
        denoiser = Denoiser(nn.Identity(), schedule, parametrisation)
        error = denoiser.target(x_hat, x_t, t) - denoiser.target(x, x_t, t)
        weight = MinSNR(gamma)(log_snr, parametrisation)
        assert_close(weight * error.square().flatten(1).sum(1), expected, rtol=1e-9, atol=0)


@each_parametrisation
def test_uniform_weight_is_one(parametrisation: Parametrisation) -> None:
    assert_close(UniformWeight()(torch.linspace(-9, 9, 7), parametrisation), torch.ones(7))


@given(
    shares=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    offset=st.floats(0, 1, exclude_max=True),
    t_min=st.floats(1e-4, 0.1),
)
@settings(deadline=None)
def test_stratified_times_are_evenly_spread_over_all_ranks(shares: list[int], offset: float, t_min: float) -> None:
    """The ranks' shares joined are one process's list, in [t_min, 1], one in each stratum."""
    total = sum(shares)
    one_process = stratified_times(total, total, 0, offset, t_min)
    ranks = [stratified_times(num, total, sum(shares[:rank]), offset, t_min) for rank, num in enumerate(shares)]
    assert torch.equal(torch.cat(ranks), one_process)
    assert one_process.min() >= torch.tensor(t_min)
    assert one_process.max() <= 1
    # Evenly spaced on the circle that joins 1 to t_min, so each of the equal strata holds exactly one.
    ordered = one_process.double().sort().values
    circle = torch.cat([ordered, ordered[:1] + (1 - t_min)])
    gaps = [after - before for before, after in pairwise(circle.tolist())]
    assert gaps == pytest.approx([(1 - t_min) / total] * total, abs=1e-6)
