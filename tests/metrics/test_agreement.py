"""Agreement of requested with measured values: closed forms, and intervals that leave people out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lit_medgen.metrics import AgreementMetric, Correlation, MeanAbsoluteError, Slope

ASKED = torch.tensor([10.0, 20, 30, 40, 50, 60])
SHOWN = torch.tensor([14.0, 19, 33, 36, 47, 41])
KINDS: list[type[AgreementMetric]] = [Correlation, Slope, MeanAbsoluteError]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_numpy(kind: type[AgreementMetric]) -> None:
    metric = kind()
    metric.update(ASKED[:2], SHOWN[:2])
    metric.update(ASKED[2:], SHOWN[2:])
    asked, shown = ASKED.numpy(), SHOWN.numpy()
    known = {
        Correlation: np.corrcoef(asked, shown)[0, 1],
        Slope: np.polyfit(asked, shown, 1)[0],
        MeanAbsoluteError: np.abs(asked - shown).mean(),
    }
    assert metric.compute().item() == pytest.approx(known[kind], rel=1e-6)


def test_a_scale_changes_the_slope_and_no_correlation() -> None:
    for kind, expected in ((Correlation, 1.0), (Slope, 0.4), (MeanAbsoluteError, 0.6 * 35 - 3)):
        metric = kind()
        metric.update(ASKED, 0.4 * ASKED + 3)
        assert metric.compute().item() == pytest.approx(expected)


def test_the_error_of_a_mean_is_that_of_the_textbook() -> None:
    """The jackknife of a mean is its standard error exactly; two images of a person are left out together."""
    metric = MeanAbsoluteError()
    metric.update(ASKED, SHOWN)
    apart = (ASKED - SHOWN).abs().double()
    assert metric.with_error()[1] == pytest.approx(float(apart.std()) / math.sqrt(6))
    twice = MeanAbsoluteError()
    twice.update(ASKED.repeat(2), SHOWN.repeat(2), people=[*"abcdef", *"abcdef"])
    assert twice.with_error() == pytest.approx(metric.with_error())


def test_the_interval_of_a_correlation_covers_the_truth() -> None:
    """Of 200 experiments with 40 normal pairs of correlation 0.6, about 95 % of the intervals hold it."""
    random, covered = np.random.default_rng(0), 0
    for _ in range(200):
        x, y = random.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 40).T
        metric = Correlation()
        metric.update(torch.from_numpy(x), torch.from_numpy(y))
        low, high = metric.estimate().ci95
        covered += low <= 0.6 <= high
    assert 180 <= covered <= 198


@pytest.mark.parametrize("kind", [Correlation, Slope])
def test_what_never_varies_agrees_with_nothing(kind: type[AgreementMetric]) -> None:
    metric = kind()
    metric.update(ASKED if kind is Correlation else torch.full((6,), 3.0), torch.full((6,), 5.0))
    estimate = metric.estimate()
    assert (estimate.value, estimate.ci95) == (0, (0, 0))


def test_numbers_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"requested are \(6,\), measured \(5,\); give pairs"):
        Slope().update(ASKED, SHOWN[:5])
