"""AUC and R^2 against scikit-learn, ties included; their jackknife intervals over people."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import r2_score, roc_auc_score

from lit_medgen.metrics.skill import AreaUnderROC, ExplainedVariance


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_scikit_learn(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    labels = (torch.rand(80, generator=random) < 0.3).double()
    predicted = ((labels + torch.randn(80, generator=random)) * 3).round()  # many ties
    area, explained = AreaUnderROC().score(labels, predicted), ExplainedVariance().score(labels, predicted)
    assert area.item() == roc_auc_score(labels.numpy(), predicted.numpy())
    assert explained.item() == pytest.approx(r2_score(labels.numpy(), predicted.numpy()), abs=1e-12)
    assert AreaUnderROC().score(labels, torch.ones(80, dtype=torch.double)) == 0.5
    assert AreaUnderROC().score(labels, labels) == 1


def test_labels_that_are_all_alike_have_no_score() -> None:
    for metric in (AreaUnderROC(), ExplainedVariance()):
        assert metric.score(torch.ones(4), torch.arange(4.0)).isnan()


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Normal predictions that differ by one standard deviation: the area is Phi(1 / sqrt 2)."""
    truth, num, random = torch.special.ndtr(torch.tensor(0.5**0.5)).item(), 200, torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(num):
        labels = torch.arange(60) % 2.0
        metric = AreaUnderROC()
        metric.update(labels, labels + torch.randn(60, generator=random))
        low, high = metric.estimate().ci95
        hits += low <= truth <= high
    assert hits / num == pytest.approx(0.95, abs=0.04)
