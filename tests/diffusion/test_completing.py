"""Laws of completion: what is given comes back, and the rest is drawn from the conditional distribution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_medgen.batch import Condition
from lit_medgen.diffusion import (
    DDIM,
    Ancestral,
    Completing,
    Cosine,
    DPMSolverPP2M,
    FlowHeun,
    Heun,
    LinearBeta,
    RectifiedFlow,
    RePaint,
    Sampler,
    filled_in,
    wholly_observed,
)
from lit_medgen.diffusion.schedules import Schedule

MEAN = torch.tensor([0.2, -0.1], dtype=torch.float64)
COVARIANCE = 0.25 * torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
GIVEN = 0.9
EXACT = -0.1 + 0.8 * (GIVEN - 0.2), 0.25 * (1 - 0.8**2)
"""Mean and variance of the second voxel, given the first (Bishop 2006, eq. 2.81 and 2.82)."""


class OfTwoVoxels:
    """The exact denoiser of N(MEAN, COVARIANCE)."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        alpha, sigma = (each[0].item() for each in self.schedule.alpha_sigma(t.double()))
        noisy = alpha**2 * COVARIANCE + sigma**2 * torch.eye(2, dtype=torch.float64)
        gain = alpha * COVARIANCE @ torch.linalg.inv(noisy)
        return (MEAN + (x_t.flatten(1) - alpha * MEAN) @ gain.T).view_as(x_t)


def noise_of(seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def completed(sampler: Sampler, schedule: Schedule, observed: list[bool], num: int = 8) -> Tensor:
    """n 1 1 2: completions of images whose voxels are GIVEN."""
    noise = noise_of(0)
    start = noise(torch.empty(num, 1, 1, 2, dtype=torch.float64))
    image, region = torch.full_like(start, GIVEN), torch.tensor(observed).expand(num, 1, 1, 2)
    return sampler(Completing(OfTwoVoxels(schedule), image, region), start, Condition(), noise)


@pytest.mark.parametrize("schedule", [Cosine(), LinearBeta(), RectifiedFlow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("make", [DDIM, Ancestral, DPMSolverPP2M, Heun, FlowHeun])
@pytest.mark.parametrize("resamplings", [1, 3])
def test_what_is_given_comes_back_by_every_sampler(make: Any, schedule: Schedule, resamplings: int) -> None:
    if make is Heun and schedule.ends_in_noise:
        pytest.skip("refused: it divides by alpha")
    sampler = RePaint(make(12, "trailing" if schedule.ends_in_noise else "log_snr"), resamplings, 5)
    found = completed(sampler, schedule, [True, False])
    torch.testing.assert_close(found[..., 0], torch.full_like(found[..., 0], GIVEN), atol=1e-9, rtol=0)
    assert found[..., 1].std() > 0.1
    torch.testing.assert_close(completed(sampler, schedule, [True, True]), torch.full_like(found, GIVEN))


def test_nothing_given_is_a_plain_sample_bit_for_bit() -> None:
    noise = noise_of(0)
    start = noise(torch.empty(8, 1, 1, 2, dtype=torch.float64))
    plain = Ancestral(12)(OfTwoVoxels(Cosine()), start, Condition(), noise)
    for sampler in (Ancestral(12), RePaint(Ancestral(12), resamplings=1, jump=5)):
        assert torch.equal(completed(sampler, Cosine(), [False, False]), plain)


def test_resampled_steps_without_anything_given_keep_the_distribution() -> None:
    found = completed(RePaint(Heun(40), 2, 10), Cosine(250), [False, False], 10000).flatten(1)
    torch.testing.assert_close(found.mean(0), MEAN, atol=0.02, rtol=0)
    torch.testing.assert_close(found.T.cov(), COVARIANCE, atol=0.02, rtol=0)


def test_with_more_resamplings_the_rest_comes_to_its_conditional_distribution() -> None:
    """Of one walk it does not: early steps decide the rest while they hardly see what is given."""
    found = [completed(RePaint(DDIM(50), num, 5), Cosine(250), [True, False], 2000)[..., 1] for num in (1, 4, 20)]
    errors = [abs(each.mean().item() - EXACT[0]) for each in found]
    assert errors[0] > 0.3
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.05
    assert abs(found[2].var().item() - EXACT[1]) < 0.015


def test_unknown_voxels_are_filled_in_from_known_ones_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 1, 9, 12), (2, 3, 5, 8, 6)):
        image = torch.rand(shape, generator=generator)
        observed = torch.rand(shape[0], 1, *shape[2:], generator=generator) < 0.3
        found = filled_in(image, observed)
        assert torch.equal(torch.where(observed, found, 0), torch.where(observed, image, 0))
        assert torch.equal(found, filled_in(torch.where(observed, image, 7.0), observed))
        assert found.min() >= image.min()
        assert found.max() <= image.max()
        constant = filled_in(torch.where(observed, 0.5, -9.0).expand(shape), observed)
        torch.testing.assert_close(constant, torch.full(shape, 0.5))
    assert torch.equal(filled_in(image, torch.zeros_like(observed)), torch.zeros_like(image))


def test_a_coarse_cell_is_known_where_all_its_voxels_are() -> None:
    observed = torch.ones(1, 1, 8, 12, dtype=torch.bool)
    observed[0, 0, 5, 7] = False
    expected = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    expected[0, 0, 2, 2] = False
    assert torch.equal(wholly_observed(observed, (4, 4)), expected)
    assert torch.equal(wholly_observed(observed, (8, 12)), observed)


def test_what_cannot_be_resampled_is_refused() -> None:
    for wrong in ({"resamplings": 0}, {"jump": 0}):
        with pytest.raises(ValueError, match="give at least 1"):
            RePaint(DDIM(), **wrong)
    with pytest.raises(ValueError, match="needs a sampler without noise"):
        RePaint(DDIM()).invert(OfTwoVoxels(Cosine()), torch.zeros(1, 1, 1, 2), 0.5)
    with pytest.raises(ValueError, match="divides by alpha"):
        RePaint(Heun()).check(RectifiedFlow())
