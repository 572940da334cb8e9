"""The diagonal Gaussian of a KL autoencoder: closed forms, sampling, clamps, statistics of many images."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from lit_medgen.networks.bottlenecks import (
    MAX_LOG_VARIANCE,
    MIN_LOG_VARIANCE,
    DiagonalGaussian,
    statistics,
    sums_over_images,
)


def moments(mean: Tensor, sigma: Tensor) -> Tensor:
    """b 2d *z from means and standard deviations b d *z."""
    return torch.cat([mean, 2 * sigma.log()], dim=1)


def test_kl_divergence_is_that_of_torch_and_of_monte_carlo() -> None:
    torch.manual_seed(0)
    mean, sigma = torch.randn(2, 3, 4, 4), torch.rand(2, 3, 4, 4) + 0.1
    found = DiagonalGaussian.of(moments(mean, sigma)).kl()
    torch.testing.assert_close(found, kl_divergence(Normal(mean, sigma), Normal(0.0, 1.0)))
    q, prior = Normal(mean, sigma), Normal(torch.tensor(0.0), torch.tensor(1.0))
    z = q.sample(torch.Size([20_000]))
    per_image = (q.log_prob(z) - prior.log_prob(z)).flatten(2).sum(2).mean(0)
    torch.testing.assert_close(per_image, found.flatten(1).sum(1), rtol=0.01, atol=0)


def test_samples_have_the_stated_mean_and_variance() -> None:
    torch.manual_seed(0)
    mean, sigma = torch.tensor([[[-1.0, 2.0]]]), torch.tensor([[[0.5, 1.5]]])
    latent = DiagonalGaussian.of(moments(mean, sigma).expand(50_000, -1, -1))
    found = latent.sample()
    torch.testing.assert_close(found.mean(0), mean[0], atol=0.03, rtol=0)
    torch.testing.assert_close(found.std(0), sigma[0], rtol=0.02, atol=0)
    torch.testing.assert_close(latent.variance[0], sigma[0].square())


@pytest.mark.parametrize("value", [-1e4, 1e4, 3e38])
def test_huge_activations_in_bfloat16_leave_everything_finite_and_float32(value: float) -> None:
    """Without the clamp, exp(1e4) is infinite, and its gradient NaN."""
    encoded = torch.cat([torch.full((1, 2, 4), 1e15), torch.full((1, 2, 4), value)], dim=1).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        latent = DiagonalGaussian.of(encoded)
        kl, sample = latent.kl().sum(), latent.sample()
        (1e-30 * kl + 1e-30 * sample.square().mean()).backward()
    assert {kl.dtype, sample.dtype, latent.moments.dtype} == {torch.float32}
    assert kl.isfinite()
    assert sample.isfinite().all()
    assert latent.log_variance.min() >= MIN_LOG_VARIANCE
    assert latent.log_variance.max() <= MAX_LOG_VARIANCE
    assert encoded.grad is not None
    assert encoded.grad.isfinite().all()


def test_moments_round_trip() -> None:
    latent = DiagonalGaussian.of(torch.randn(2, 6, 3) * 20)
    again = DiagonalGaussian.of(latent.moments)
    assert torch.equal(again.mean, latent.mean)
    assert torch.equal(again.log_variance, latent.log_variance)


def constructed(num: int) -> Tensor:
    """Images of three channels: of variance 4 and noise 1; constant; with the same pattern in all images."""
    torch.manual_seed(0)
    mean = torch.zeros(num, 3, 2, 2)
    mean[:, 0] = 2 * (1 - 2 * (torch.arange(num) % 2))[:, None, None]
    mean[:, 2] = torch.tensor([[-3.0, 3.0], [3.0, -3.0]])
    sigma = torch.tensor([1.0, 0.5, math.sqrt(3)]).view(1, 3, 1, 1).expand_as(mean)
    return moments(mean, sigma)


def test_statistics_of_a_constructed_case() -> None:
    found = statistics(sums_over_images(constructed(8)))
    torch.testing.assert_close(found.noise_shares, torch.tensor([1 / (4 + 1), 1.0, 3 / (9 + 3)]))
    assert found.noise_share.item() == pytest.approx((1 + 0.25 + 3) / (4 + 1 + 0 + 0.25 + 9 + 3))
    assert found.active_channels.item() == 1  # a pattern that all images share says nothing of any
    nats = [(4 + 1 - 1 - 0) / 2, (0.25 - 1 + math.log(4)) / 2, (9 + 3 - 1 - math.log(3)) / 2]
    assert found.kl_per_dimension.item() == pytest.approx(sum(nats) / 3)


def test_sums_of_parts_add_up_to_those_of_all() -> None:
    images = torch.randn(7, 6, 3, 2)
    parts = torch.stack([sums_over_images(part) for part in images.split(3)]).sum(0)
    torch.testing.assert_close(parts, sums_over_images(images))
    assert statistics(parts).noise_share.item() == pytest.approx(
        statistics(sums_over_images(images)).noise_share.item()
    )


def test_the_noise_share_is_the_floor_of_a_second_stage() -> None:
    """No function of x_t = alpha z + sigma eps predicts eps better than alpha^2 share / (alpha^2 share + sigma^2)."""
    torch.manual_seed(0)
    share, alpha = 0.2, 0.8
    sigma, num = math.sqrt(1 - alpha**2), 200_000
    mean = math.sqrt(1 - share) * torch.randn(num, 1, 1)  # known exactly to the best network there could be
    latent = DiagonalGaussian.of(moments(mean, torch.full_like(mean, math.sqrt(share))))
    assert statistics(sums_over_images(latent.moments)).noise_share.item() == pytest.approx(share, rel=0.01)
    eps = torch.randn_like(mean)
    x_t = alpha * latent.sample() + sigma * eps
    rest = x_t - alpha * mean
    best = rest * (sigma / (alpha**2 * share + sigma**2))
    floor = alpha**2 * share / (alpha**2 * share + sigma**2)
    assert (eps - best).square().mean().item() == pytest.approx(floor, rel=0.02)
