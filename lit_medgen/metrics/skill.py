"""Skill of predictions: how well a classifier or a regression tells the labels of images, with intervals over people.

Labels stand in the place of what was asked for, predictions in that of what was measured. Both scores are NaN where
the labels do not define them: all of one class, or all the same number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_medgen.metrics.agreement import AgreementMetric


class AreaUnderROC(AgreementMetric):
    """Area under the ROC curve: how often an image labelled 1 is rated above one labelled 0, ties counting one half."""

    limits = (0.0, 1.0)
    best = "higher"
    features = "labels and predictions"

    def score(self, requested: Tensor, measured: Tensor) -> Tensor:
        """The area from n labels 0 or 1 and n predictions: exact, from the mean ranks of ties (Mann & Whitney 1947)."""
        positive = requested > 0.5
        ordered = measured.sort().values
        below = torch.searchsorted(ordered, measured[positive])
        not_above = torch.searchsorted(ordered, measured[positive], right=True)
        num, others = len(below), len(measured) - len(below)
        ranks = (below + not_above + 1).sum().double() / 2
        return (ranks - num * (num + 1) / 2) / (num * others if num and others else torch.nan)


class ExplainedVariance(AgreementMetric):
    """R^2, the share of the labels' variance that predictions explain: 1 if all are right, 0 for the labels' mean."""

    limits = (-float("inf"), 1.0)
    best = "higher"
    features = "labels and predictions"

    def score(self, requested: Tensor, measured: Tensor) -> Tensor:
        """1 less the sum of squared errors over that of deviations from the mean, of n labels and n predictions."""
        total = (requested - requested.mean()).square().sum()
        return 1 - (measured - requested).square().sum() / total.where(total > 0, torch.nan)
