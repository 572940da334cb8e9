"""Likelihoods of grey values: they sum to one, agree with distributions known elsewhere, and lose no tail."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch

from lit_medgen.diffusion import Bernoulli, DiscretisedLogistic, Gaussian, Likelihood

NOISE = torch.tensor(0.05)
KINDS = (DiscretisedLogistic, Gaussian)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [None, 0.003, 0.4])
@pytest.mark.parametrize("location", [-1.7, -1.0, 0.013, 0.99, 3.0])
def test_probabilities_of_all_values_sum_to_one(kind: type[Likelihood], scale: float | None, location: float) -> None:
    """Of 256 grey values, also where the location lies outside of them."""
    values = torch.linspace(-1, 1, 256, dtype=torch.float64).view(-1, 1, 1)
    likelihood = kind(256, scale)  # type: ignore[call-arg]
    log_probability = likelihood(values, torch.full_like(values, location), NOISE)
    assert float(log_probability.exp().sum()) == pytest.approx(1, abs=1e-9)
    assert log_probability.isfinite().all()  # a value far off costs nats, not infinitely many


@pytest.mark.parametrize("kind", KINDS)
def test_agree_with_scipy(kind: type[Likelihood]) -> None:
    """Differences of the cumulative distribution with the same mean and standard deviation."""
    scale, location, step = 0.1, 0.2, 2 / 255
    of = scipy.stats.norm(location, scale)
    if kind is DiscretisedLogistic:
        of = scipy.stats.logistic(location, scale * math.sqrt(3) / math.pi)
    values = torch.linspace(-1, 1, 256, dtype=torch.float64)[20:-20].view(-1, 1, 1)
    found = kind(256, scale)(values, torch.full_like(values, location), NOISE)  # type: ignore[call-arg]
    grey = values.flatten().numpy()
    expected = torch.from_numpy(of.cdf(grey + step / 2) - of.cdf(grey - step / 2))
    torch.testing.assert_close(found.exp(), expected, rtol=1e-6, atol=1e-15)


def test_density() -> None:
    """Without grey values, of a normal distribution, summed over an image."""
    x, location = torch.randn(2, 3, 1, 4, dtype=torch.float64)
    found = Gaussian(num_values=None, scale=0.7)(x, location, NOISE)
    expected = torch.distributions.Normal(location, 0.7).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(found, expected)
    assert not Gaussian(num_values=None).is_discrete


def test_bernoulli() -> None:
    """Of pixels that are probabilities; the image of a location is its mean."""
    x, logits = torch.tensor([[[-1.0, 1.0, 0.0]]]), torch.tensor([[[0.0, 2.0, -1.0]]])
    p = torch.sigmoid(logits)
    expected = ((1 - p).log()[..., 0] + p.log()[..., 1] + (p * (1 - p)).log()[..., 2] / 2).double().flatten()
    torch.testing.assert_close(Bernoulli()(x, logits, NOISE), expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(Bernoulli().image(logits), 2 * p - 1)


@pytest.mark.parametrize("kind", KINDS)
def test_scale_is_that_of_the_noise_or_learned(kind: type[Likelihood]) -> None:
    """None: sigma_0 / alpha_0 of z_0; "learned": a parameter, which gradients reach."""
    x = torch.zeros(1, 1, 4)
    of_noise = kind(256)(x, x, torch.tensor(0.2))  # type: ignore[call-arg]
    torch.testing.assert_close(of_noise, kind(256, 0.2)(x, x, NOISE))  # type: ignore[call-arg]
    learned = kind(256, "learned")  # type: ignore[call-arg]
    learned(x, x, NOISE).sum().backward()
    (parameter,) = learned.parameters()
    assert parameter.grad is not None
    assert parameter.grad != 0


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ("wide", "give a number, 'learned'"),
        (-1.0, "give a finite number above 0"),
        (math.inf, "finite"),
        (math.nan, "finite"),
    ],
)
def test_refuses_scales_that_are_none(scale: float | str, message: str) -> None:
    """One line that says what to give."""
    with pytest.raises(ValueError, match=message):
        Gaussian(scale=scale)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.001, 0.5])
def test_gradients_are_those_of_differences(kind: type[Likelihood], scale: float) -> None:
    """Towards location and scale, finite for the darkest and the brightest value too, and far from the location."""
    values = torch.tensor([-1.0, -1 + 2 / 255, 0.2, 1.0]).double().view(1, 1, 4)
    likelihood = kind(256, "learned")  # type: ignore[call-arg]
    (parameter,) = likelihood.parameters()
    for location in (-1.0, 0.21, 3.0):
        parameter.data.fill_(math.log(scale))
        where = torch.full((1, 1, 4), location, dtype=torch.float64, requires_grad=True)
        likelihood.zero_grad()
        likelihood(values, where, NOISE).sum().backward()
        assert where.grad is not None
        assert parameter.grad is not None
        h = 1e-6
        near = [likelihood(values, where.detach() + side * h, NOISE).sum() for side in (-1, 1)]
        assert float(where.grad.sum()) == pytest.approx(float(near[1] - near[0]) / (2 * h), rel=1e-3, abs=1e-6)
        assert parameter.grad.isfinite()
