"""Noise levels: spread evenly over batch and ranks, over all images of an evaluation, and over discrete levels."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_medgen.diffusion import RectifiedFlow
from lit_medgen.diffusion.noise_levels import (
    LogitNormal,
    TrainingTimes,
    UniformTimes,
    dense_near_data,
    evaluation_times,
    levels,
    stratified_times,
)


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


@given(num=st.integers(1, 60), num_repeats=st.integers(1, 8), offset=st.floats(0, 1, exclude_max=True))
@settings(deadline=None)
def test_evaluation_times_leave_no_large_gap(num: int, num_repeats: int, offset: float) -> None:
    """Each image is seen once in each of num_repeats equal parts, and all images together fill each part."""
    times = torch.stack(
        [evaluation_times(torch.arange(num), repeat, num_repeats, offset, 0.0) for repeat in range(num_repeats)]
    ).double()
    parts = torch.arange(num_repeats)[:, None] / num_repeats
    assert (times >= parts - 1e-6).all()
    assert (times <= parts + 1 / num_repeats + 1e-6).all()
    ordered = times[0].sort().values * num_repeats
    circle = torch.cat([ordered, ordered[:1] + 1])
    assert circle.diff().max() < 2.7 / num + 1e-5  # three-distance theorem of the golden ratio


@pytest.mark.parametrize("power", [0, 1, 2, -0.5])
def test_dense_times_keep_means(power: float) -> None:
    """The mean of share * f(t) is the mean of f over [t_min, 1]."""
    t_min, even = 0.01, (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    t, share = dense_near_data(even, t_min)
    line = t_min + (1 - t_min) * even
    assert (share * t**power).mean().item() == pytest.approx((line**power).mean().item(), rel=1e-3)
    assert (t <= line).all()


@pytest.mark.parametrize("num_levels", [1, 7, 256])
def test_levels_are_visited_alike(num_levels: int) -> None:
    """Even times give each of the levels 1 to T equally often, ends included."""
    even = (torch.arange(num_levels * 4, dtype=torch.float64) + 0.5) / (num_levels * 4)
    assert torch.bincount(levels(even, num_levels)).tolist() == [0] + [4] * num_levels
    assert levels(torch.tensor([0.0, 1.0]), num_levels).tolist() == [1, num_levels]


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.8), (-2.0, 1.7)])
def test_logit_normal_times_have_its_density(mean: float, std: float) -> None:
    """Quantiles are those of a normal log(t / (1 - t)), and the density is that of Esser et al. 2024, section 3.1."""
    position = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    t = LogitNormal(mean, std).quantile(position)
    torch.testing.assert_close(torch.special.ndtr((torch.logit(t) - mean) / std), position, rtol=1e-9, atol=1e-12)
    step = 1e-6
    density = 2 * step / LogitNormal(mean, std).quantile(torch.stack([position - step, position + step])).diff(dim=0)[0]
    expected = torch.distributions.Normal(mean, std).log_prob(torch.logit(t)).exp() / (t * (1 - t))
    torch.testing.assert_close(density, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("training_times", [LogitNormal(), LogitNormal(-1, 0.3), LogitNormal(0, 4), UniformTimes()])
def test_training_times_keep_strata_and_ends(training_times: TrainingTimes) -> None:
    """A map that rises from t_min to 1 keeps one time in each stratum, however many ranks share them."""
    t = training_times(torch.linspace(0, 1, 1001), 0.01)
    assert t.dtype == torch.float32
    assert [t[0].item(), t[-1].item()] == pytest.approx([0.01, 1])
    assert (t.diff() > 0).sum() > 900
    assert (t.diff() >= 0).all()


def test_a_shift_of_the_flow_is_one_of_the_mean() -> None:
    """Noise levels of a shifted flow at logit-normal times are logit-normal, with log shift more in the mean."""
    position = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    shifted = RectifiedFlow(3.0).sigma(LogitNormal(0.2, 0.7).quantile(position))
    plain = LogitNormal(0.2 + torch.tensor(3.0).log().item(), 0.7).quantile(position)
    torch.testing.assert_close(shifted, plain, rtol=1e-6, atol=1e-6)


def test_uniform_times_are_those_without_a_distribution() -> None:
    position = torch.linspace(0, 1, 20)
    torch.testing.assert_close(UniformTimes()(position, 0.001), 0.001 + 0.999 * position)


@pytest.mark.parametrize(
    ("mean", "std", "message"), [(0, 0, "std is 0"), (0, -1, "std is -1"), (float("nan"), 1, "mean")]
)
def test_impossible_logit_normals_are_refused(mean: float, std: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LogitNormal(mean, std)
